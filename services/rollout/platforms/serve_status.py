"""Reads Ray Serve's status document (`GET /api/serve/applications/`). Pure; `serve.py` calls it.

Fields: ray.serve.schema.ServeInstanceDetails.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.rollout.platforms.base import Phase, PlatformUnavailable
from services.serving.application import ENGINE, owner_of

# Serve's options that a PUT must repeat: it starts Serve with them, and warns when they change.
_OPTIONS = ("proxy_location", "http_options", "grpc_options", "target_capacity")

# An exception as Python prints it, wherever the line's prefix ends; or the kernel's and Ray's words for a process out of memory.
_CAUSE = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception|Interrupt): .*|.*\b(?:Out of memory|OutOfMemory|SIGKILL)\b.*")
_PORT = re.compile(r"Started HTTP server on port (\d+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Replica:
    """An engine's process."""

    id: str
    node: str
    host: str
    """Where its own HTTP server listens."""
    log: str
    """Its log's path below the node's log folder."""


@dataclass(frozen=True, slots=True)
class ServeSnapshot:
    """The document at one moment."""

    document: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "ServeSnapshot":
        """Raises PlatformUnavailable when the text is not Serve's (a proxy's error page, say)."""
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("applications"), dict):
            raise PlatformUnavailable(
                f"Ray's dashboard answered with something else than Serve's status: {text[:200]!r}"
            )
        return cls(document)

    def options(self) -> dict[str, Any] | None:
        """How Serve runs now, or None when it has not been started."""
        if not self.document.get("controller_info"):
            return None
        return {key: self.document[key] for key in _OPTIONS if self.document.get(key) is not None}

    def declared(self) -> dict[str, dict[str, Any]]:
        """The applications that a PUT must repeat to keep them, by name, with the config they were deployed by.

        Those being deleted are left out: repeating one would bring it back. Applications deployed from code are left out as well: Serve
        does not count them among those that a PUT replaces.
        """
        return {
            name: app["deployed_app_config"]
            for name, app in self._apps().items()
            if app.get("source") == "declarative" and app.get("deployed_app_config") and app.get("status") != "DELETING"
        }

    def revisions(self, service: str) -> Iterator[str]:
        """Names of the service's applications."""
        for name, app in self._apps().items():
            if owner_of(app.get("route_prefix") or (app.get("deployed_app_config") or {}).get("route_prefix")) == (
                service,
                name,
            ):
                yield name

    def prefix_of(self, name: str) -> str | None:
        """The route prefix of an application that is there and stays."""
        app = self._apps().get(name)
        if app is None or app.get("status") == "DELETING":
            return None
        return app.get("route_prefix") or (app.get("deployed_app_config") or {}).get("route_prefix")

    def is_running(self, name: str) -> bool:
        """Serve sends requests to the application, whether or not it answers."""
        return self.phase(name)[0] == "ready"

    def is_failed(self, name: str) -> bool:
        """The application serves nothing, and that is not for want of time."""
        return self.phase(name)[0] == "failed"

    def gave_up(self, name: str) -> bool:
        """No replica of the application ever started, and Serve tries no more."""
        return bool(self._apps()[name].get("status") == "DEPLOY_FAILED")

    def phase(self, name: str) -> tuple[Phase, str]:
        """Phase (`ready` here means RUNNING) and Serve's message."""
        app = self._apps()[name]
        status, message = app.get("status"), self._message(app)
        if status == "DELETING":
            return "draining", message
        # DEPLOYING is said of every change of the bounds too; replicas that ran before it go on.
        if status == "RUNNING" or (status == "DEPLOYING" and self.ready_replicas(name) > 0):
            return "ready", message
        # UNHEALTHY: replicas that served have died or stopped answering; Serve starts others.
        if status == "DEPLOY_FAILED" or (status == "UNHEALTHY" and self.ready_replicas(name) == 0):
            return "failed", message
        return "starting", message

    def ready_replicas(self, name: str) -> int:
        """Engine replicas that Serve sends requests to."""
        return sum(r.get("state") == "RUNNING" for r in self._engine(name).get("replicas", []))

    def only_replica(self, name: str) -> Replica | None:
        """The engine's replica where it has exactly one, and that one serves."""
        replicas = self._engine(name).get("replicas", [])
        if len(replicas) != 1 or replicas[0].get("state") != "RUNNING":
            return None
        found = replicas[0]
        host = (self.document.get("http_options") or {}).get("host")
        reached = found.get("node_ip") if host in (None, "0.0.0.0", "::") else host  # noqa: S104
        if not reached or not found.get("log_file_path"):
            return None
        return Replica(found["replica_id"], found["node_id"], reached, found["log_file_path"].lstrip("/"))

    def last_actor(self, name: str) -> str | None:
        """Actor id of the engine replica that started last, dead or alive."""
        engine = self._engine(name)
        replicas = [*engine.get("recent_dead_replicas", []), *engine.get("replicas", [])]
        last = max(replicas, key=lambda replica: replica.get("start_time_s", 0), default=None)
        return last.get("actor_id") if last else None

    def _apps(self) -> dict[str, dict[str, Any]]:
        apps: dict[str, dict[str, Any]] = self.document["applications"]
        return apps

    def _engine(self, name: str) -> dict[str, Any]:
        """The deployment that holds the engine; the router beside it has none."""
        deployments: dict[str, dict[str, Any]] = self._apps()[name].get("deployments") or {}
        return next((d for d_name, d in deployments.items() if d_name.startswith(ENGINE)), {})

    @staticmethod
    def _message(app: dict[str, Any]) -> str:
        messages = [app.get("message"), *(d.get("message") for d in (app.get("deployments") or {}).values())]
        return " ".join(dict.fromkeys(first_and_last(m) for m in messages if m and m.strip()))


def http_port(log: str) -> int | None:
    """The port of a replica's own HTTP server, from its log: Serve tells it to its proxies and to nobody else."""
    found = _PORT.findall(log)
    return int(found[-1]) if found else None


def engine_error(log: str) -> str:
    """The line of an engine's log that names the cause, without the log's own prefix; empty when no line does.

    It is the first one: the processes above the one that broke only report that something below them did.
    """
    for line in log.splitlines():
        if found := _CAUSE.search(_ANSI.sub("", line)):
            return found[0].strip()
    return ""


def first_and_last(message: str) -> str:
    """A message of Serve's in one line. Serve's messages hold whole tracebacks: what happened stands in the first line, why in the last."""
    lines = [line.strip() for line in _ANSI.sub("", message).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"

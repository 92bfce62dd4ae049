"""The platform `serve`: revisions as applications on a running Ray cluster, through Ray Serve's REST API.

The controller calls it. It speaks HTTP alone and never imports Ray, so it works against the laptop's Ray, one that the chart deploys
and one that the user has. It must not touch applications whose route prefix is not `/<service>/<revision>`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.rollout.platforms.base import PlatformRejected, PlatformUnavailable, RevisionSpec, RevisionState
from services.rollout.platforms.serve_status import ServeSnapshot, engine_error, http_port
from services.rollout.platforms.warm_up import WarmUps
from services.serving.application import EngineSpec, bounds_of, owner_of, route_prefix, scaled, serve_application
from services.serving.errors import InvalidEngineSpec

_APPLICATIONS = "/api/serve/applications/"
_WRITE_ATTEMPTS = 3
_LOG_LINES = 200
_WORDS_WITHIN = 5.0  # seconds: the engine may write its reason to the log after Serve has called the application failed
_PORT_LINES = 10_000  # the port is told at the start; a line a request follows

# Ray answers a PUT only after it has started its controller and proxies, which takes tens of seconds on a busy machine.
_REST_TIMEOUT = aiohttp.ClientTimeout(total=120)

_DIRECT_TIMEOUT = aiohttp.ClientTimeout(total=5)

_Applications = dict[str, dict[str, Any]]  # by name, as declared


class ServePlatform:
    """A `Platform` on Ray Serve.

    `dashboard_url` is Ray's dashboard (where the REST API is), `proxy_url` is Serve's HTTP address as the gateway reaches it, `token`
    is Ray's bearer token where the cluster asks for one. `direct`: gateways can reach the replicas' own ports (30000 to 31000 of the
    Ray nodes); a revision with one replica is then addressed without the proxy, which asks a Python process about every request.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        dashboard_url: str,
        proxy_url: str,
        *,
        token: str | None = None,
        direct: bool = False,
    ) -> None:
        self._session = session
        self._dashboard_url = dashboard_url.rstrip("/")
        self._proxy_url = proxy_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._writing = asyncio.Lock()
        self._warm_ups = WarmUps(session)
        self._last_words: dict[str, str] = {}
        self._failed_at: dict[str, float] = {}
        self._direct = direct
        self._replicas: dict[str, tuple[str, str | None]] = {}
        """By revision: its only replica's id and address; None: its log does not tell the port any more."""

    async def apply(self, revision: RevisionSpec) -> None:
        """See `Platform.apply`. Raises PlatformRejected and PlatformUnavailable."""
        spec = EngineSpec(
            arguments=revision.engine,
            resources=revision.resources,
            min_replicas=revision.replicas[0],
            max_replicas=revision.replicas[1],
            max_ongoing_requests=revision.max_ongoing_requests,
            autoscaling=revision.autoscaling,
        )
        try:
            application = serve_application(revision.name, revision.service, revision.artifact, spec)
        except InvalidEngineSpec as error:
            raise PlatformRejected(f"revision {revision.name}: {error}") from error
        self._refuse_others(await self._snapshot(), application)
        await self._write(lambda current: {**current, revision.name: application})

    async def scale(self, name: str, replicas: tuple[int, int]) -> None:
        """See `Platform.scale`. Raises PlatformRejected and PlatformUnavailable."""
        await self._write(
            lambda current: {
                n: scaled(app, replicas) if n == name and owner_of(app.get("route_prefix")) is not None else app
                for n, app in current.items()
            }
        )

    async def remove(self, name: str) -> None:
        """See `Platform.remove`. Raises PlatformUnavailable."""
        self._forget(name)
        await self._write(
            lambda current: {
                n: app for n, app in current.items() if n != name or owner_of(app.get("route_prefix")) is None
            }
        )

    async def observe(self, service: str) -> dict[str, RevisionState]:
        """See `Platform.observe`. Raises PlatformUnavailable."""
        snapshot = await self._snapshot()
        states = {}
        for name in snapshot.revisions(service):
            if not snapshot.is_running(name):
                self._forget(name)
            if snapshot.is_failed(name) and not self._last_words.get(name):
                self._failed_at.setdefault(name, time.monotonic())
                self._last_words[name] = await self._engine_log(snapshot, name)
            state = self._state(snapshot, service, name)
            if self._direct and state.phase == "ready":
                state = replace(state, direct=await self._replica_address(snapshot, service, name))
            states[name] = state
        return states

    async def close(self) -> None:
        """See `Platform.close`."""
        await self._warm_ups.close()

    def _state(self, snapshot: ServeSnapshot, service: str, name: str) -> RevisionState:
        phase, message = snapshot.phase(name)
        if phase == "ready" and not self._warm_ups.answered(name, self._address(service, name)):
            phase, message = "starting", self._warm_ups.message(name)
        if phase == "failed":
            words = self._last_words.get(name)
            if not words and snapshot.gave_up(name) and time.monotonic() - self._failed_at[name] < _WORDS_WITHIN:
                phase = "starting"
            message = "\n".join(part for part in (message, words) if part)
        address = self._address(service, name) if phase == "ready" else None
        bounds = bounds_of(snapshot.declared().get(name, {}))
        return RevisionState(name, phase, snapshot.ready_replicas(name), address, message, replicas=bounds)

    async def _replica_address(self, snapshot: ServeSnapshot, service: str, name: str) -> str | None:
        """The base URL of the revision's only replica, once it has answered there."""
        replica = snapshot.only_replica(name)
        if replica is None:
            self._replicas.pop(name, None)
            return None
        known = self._replicas.get(name)
        if known is not None and known[0] == replica.id:
            return known[1]
        self._replicas.pop(name, None)
        with contextlib.suppress(PlatformUnavailable, PlatformRejected, aiohttp.ClientError, TimeoutError):
            params = {"node_id": replica.node, "filename": replica.log, "lines": str(_PORT_LINES)}
            port = http_port(await self._rest("GET", "/api/v0/logs/file", params=params))
            if port is None:
                self._replicas[name] = replica.id, None
                return None
            address = f"http://{replica.host}:{port}{route_prefix(service, name)}/v1"
            async with self._session.get(f"{address}/models", timeout=_DIRECT_TIMEOUT) as answer:
                if answer.status == 200:
                    self._replicas[name] = replica.id, address
                    return address
        return None

    def _address(self, service: str, name: str) -> str:
        return f"{self._proxy_url}{route_prefix(service, name)}/v1"

    def _forget(self, name: str) -> None:
        self._warm_ups.forget(name)
        self._last_words.pop(name, None)
        self._failed_at.pop(name, None)
        self._replicas.pop(name, None)

    @staticmethod
    def _refuse_others(snapshot: ServeSnapshot, application: dict[str, Any]) -> None:
        name, prefix = application["name"], application["route_prefix"]
        held = snapshot.prefix_of(name)
        if held is not None and held != prefix:
            raise PlatformRejected(f"Ray Serve already has an application {name!r} that is not ours (at {held})")

    async def _write(self, change: Callable[[_Applications], _Applications]) -> None:
        """Reads all applications, changes the mapping, writes it back.

        The PUT replaces everything and Serve knows no versions, so a second writer can undo ours between our read and our write: it is
        read again afterwards, and what is missing is written once more.
        """
        async with self._writing:
            for _ in range(_WRITE_ATTEMPTS):
                before = await self._snapshot()
                wanted = change(before.declared())
                if wanted == before.declared():
                    return
                await self._put(before, list(wanted.values()))
            after = (await self._snapshot()).declared()
            if change(after) != after:
                raise PlatformUnavailable("another writer keeps changing Ray Serve's applications; will try again")

    async def _put(self, before: ServeSnapshot, applications: list[dict[str, Any]]) -> None:
        proxy = urlsplit(self._proxy_url)
        config = before.options() or {
            "proxy_location": "EveryNode",
            "http_options": {
                "host": "127.0.0.1" if proxy.hostname in ("127.0.0.1", "localhost") else "0.0.0.0",  # noqa: S104
                "port": proxy.port or 8000,
            },
        }
        await self._rest("PUT", _APPLICATIONS, json={**config, "applications": applications})

    async def _snapshot(self) -> ServeSnapshot:
        return ServeSnapshot.parse(await self._rest("GET", _APPLICATIONS))

    async def _engine_log(self, snapshot: ServeSnapshot, name: str) -> str:
        """The engine's own words: the engine core and its workers write the cause to logs that Serve's message does not hold."""
        actor = snapshot.last_actor(name)
        if actor is None:
            return ""
        for suffix in ("out", "err"):  # vLLM logs its tracebacks to stdout; what Python or the kernel says is on stderr
            params = {"actor_id": actor, "suffix": suffix, "lines": str(_LOG_LINES)}
            with contextlib.suppress(PlatformUnavailable, PlatformRejected):
                if cause := engine_error(await self._rest("GET", "/api/v0/logs/file", params=params)):
                    return cause
        return ""

    async def _rest(self, method: str, path: str, **arguments: Any) -> str:
        url = self._dashboard_url + path
        try:
            async with self._session.request(
                method, url, headers=self._headers, timeout=_REST_TIMEOUT, **arguments
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PlatformUnavailable(
                f"Ray at {self._dashboard_url} did not answer: {error or type(error).__name__}"
            ) from error
        if answer.status in (401, 403):
            raise PlatformRejected(f"Ray at {self._dashboard_url} refused our token: {text.strip()}")
        if 400 <= answer.status < 500:
            raise PlatformRejected(f"Ray Serve refused the request ({answer.status}): {text.strip()[:2000]}")
        if answer.status != 200:
            raise PlatformUnavailable(f"Ray at {self._dashboard_url} answered {answer.status}: {text.strip()[:500]}")
        return text

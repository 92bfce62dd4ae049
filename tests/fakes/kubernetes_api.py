"""An API server in miniature, over real HTTP: custom resources with versions, generations, finalizers, a status of their own, server-side
apply and watches; events, pods and their logs; and the faults that real ones have. For tests of whoever talks to Kubernetes.

What it leaves out: schemas, conflicts between field managers, old resource versions of a watch.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

from services.rollout.operator.api import KubernetesApi

SERVICES = "understudy.dev/v1alpha1/llmservices"
KINDS = {
    SERVICES: "LLMService",
    "ray.io/v1/rayservices": "RayService",
    "v1/events": "Event",
    "v1/pods": "Pod",
    # Clients want to know that there are such things, even where they may not look at them.
    "v1/namespaces": "Namespace",
    "apiextensions.k8s.io/v1/customresourcedefinitions": "CustomResourceDefinition",
}

Object = dict[str, Any]
Answer = web.StreamResponse | None
Fault = Callable[[web.Request], Answer | Awaitable[Answer]]


class FakeKubernetes:
    """`objects`: by resource (`group/version/plural`), then (namespace, name)."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = {resource: {} for resource in KINDS}
        self.logs: dict[tuple[str, str], str] = {}
        self.calls: list[tuple[str, str]] = []
        """(method, path) of every request that was answered."""
        self.fault: Fault | None = None
        """Asked before each request; what it returns is the answer."""
        self.admit: Callable[[Object, Object | None], Object] = lambda new, old: new
        """A mutating webhook: (object, old object) to what is stored."""
        self._version = 100
        self._born = datetime(2026, 1, 1, tzinfo=UTC)
        self._watchers: list[tuple[str, str | None, asyncio.Queue[Object | None]]] = []
        self._port = 0
        self._runner: web.AppRunner | None = None

    # What tests do to it

    def put(self, name: str, spec: Object, namespace: str = "default", **metadata: Any) -> Object:
        """Creates or edits an LLMService as a person would."""
        body = {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": spec,
        }
        old = self.objects[SERVICES].get((namespace, name))
        if old is not None:
            body["metadata"] = {**old["metadata"], **metadata}
            return self._store(SERVICES, {**old, **body})
        return self._create(SERVICES, body)

    def resource(self, name: str, namespace: str = "default") -> Object:
        """An LLMService as it is now; a copy."""
        return copy.deepcopy(self.objects[SERVICES][namespace, name])

    def annotate(self, name: str, namespace: str = "default", **annotations: str) -> None:
        """Sets annotations under understudy.dev; underscores are dashes."""
        body = self.resource(name, namespace)
        named = {f"understudy.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
        body["metadata"]["annotations"] = {**body["metadata"].get("annotations", {}), **named}
        self._store(SERVICES, body)

    def delete(self, name: str, namespace: str = "default", *, force: bool = False) -> None:
        """Deletes an LLMService; with `force` as one does who takes its finalizers off first."""
        body = self.resource(name, namespace)
        if force:
            body["metadata"]["finalizers"] = []
        self._delete(SERVICES, body)

    def events(self) -> list[Object]:
        """All events, oldest first."""
        return list(self.objects["v1/events"].values())

    def kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """Writes a kubeconfig for this server."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "secret"}}],
        }
        path.write_text(json.dumps(document))
        return path

    def connect(self, folder: Path) -> KubernetesApi:
        """A client of this server."""
        return KubernetesApi.connect(str(self.kubeconfig(folder / "kubeconfig")))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Away: connections break, watches end."""
        assert self._runner is not None
        await self._runner.cleanup()
        self._watchers.clear()

    def break_watches(self) -> None:
        """Every watch ends, as after the time that a server gives it."""
        for *_, queue in self._watchers:
            queue.put_nowait(None)

    # What it answers

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.fault is not None:
            answer = self.fault(request)
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer is not None:
                return answer
        if request.headers.get("Authorization", "").lower() != "bearer secret":
            return _status(401, "who are you?")
        self.calls.append((request.method, request.path))
        parts = request.path.strip("/").split("/")
        if parts[0] in ("readyz", "version"):
            return web.json_response({"gitVersion": "v1.34.0"})
        if len(parts) < 3 or (parts[0] == "apis" and len(parts) == 3):
            return self._discover(parts)
        api, rest = ("/".join(parts[1:3]), parts[3:]) if parts[0] == "apis" else (parts[1], parts[2:])
        namespace = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource = f"{api}/{rest[0]}"
        if resource not in KINDS:
            return _status(404, "the server could not find the requested resource")
        if len(rest) == 1:
            return await self._collection(request, resource, namespace)
        return await self._one(request, resource, str(namespace), rest[1], "/".join(rest[2:]))

    def _discover(self, parts: list[str]) -> web.Response:
        if parts == ["api"]:
            return web.json_response({"versions": ["v1"]})
        if parts == ["apis"]:
            groups = []
            for api in {resource.rpartition("/")[0] for resource in KINDS if resource.count("/") == 2}:
                version = {"groupVersion": api, "version": api.split("/")[1]}
                groups.append({"name": api.split("/")[0], "versions": [version], "preferredVersion": version})
            return web.json_response({"groups": groups})
        api = "/".join(parts[1:])
        found = [
            {
                "name": name,
                "kind": kind,
                "namespaced": True,
                "singularName": kind.lower(),
                "verbs": ["list", "watch", "patch"],
            }
            for resource, kind in KINDS.items()
            for name in (resource.split("/")[-1], f"{resource.split('/')[-1]}/status")
            if resource.rpartition("/")[0] == api
        ]
        return web.json_response({"resources": found}) if found else _status(404, "no such group")

    async def _collection(self, request: web.Request, resource: str, namespace: str | None) -> web.StreamResponse:
        if request.method == "POST":
            body = await request.json()
            if (str(namespace), body["metadata"]["name"]) in self.objects[resource]:
                return _status(409, "it exists already")
            body["metadata"]["namespace"] = namespace
            return web.json_response(self._create(resource, body), status=201)
        if request.query.get("watch") == "true":
            return await self._watch(request, resource, namespace)
        wanted = dict(pair.split("=") for pair in request.query.get("labelSelector", "").split(",") if pair)
        items = [
            body
            for (where, _), body in sorted(self.objects[resource].items())
            if namespace in (None, where) and wanted.items() <= body["metadata"].get("labels", {}).items()
        ]
        start, size = int(request.query.get("continue", 0)), int(request.query.get("limit", 1_000_000))
        rest = str(start + size) if start + size < len(items) else ""
        metadata = {"resourceVersion": str(self._version), "continue": rest}
        page = [
            {k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items[start : start + size]
        ]
        kind = {"apiVersion": resource.rpartition("/")[0], "kind": f"{KINDS[resource]}List"}
        return web.json_response({**kind, "metadata": metadata, "items": page})

    async def _watch(self, request: web.Request, resource: str, namespace: str | None) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        since = int(request.query.get("resourceVersion", 0))
        for (where, _), body in list(self.objects[resource].items()):
            if namespace in (None, where) and int(body["metadata"]["resourceVersion"]) > since:
                queue.put_nowait({"type": "ADDED", "object": copy.deepcopy(body)})
        watcher = (resource, namespace, queue)
        self._watchers.append(watcher)
        try:
            while (event := await queue.get()) is not None:
                await answer.write(json.dumps(event).encode() + b"\n")
            return answer
        except ConnectionError:
            return answer  # whoever watched is gone
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    async def _one(
        self, request: web.Request, resource: str, namespace: str, name: str, part: str
    ) -> web.StreamResponse:
        body = copy.deepcopy(self.objects[resource].get((namespace, name)))
        if part == "log":
            text = self.logs.get((name, request.query.get("container", "")))
            return web.Response(text=text) if text is not None else _status(400, "no such container")
        if request.method == "PATCH":
            return await self._patch(request, resource, (namespace, name), part)
        if body is None:
            return _status(404, f'{resource.split("/")[-1]} "{name}" not found')
        if request.method == "DELETE":
            self._delete(resource, body)
        return web.json_response(body)

    async def _patch(self, request: web.Request, resource: str, where: tuple[str, str], part: str) -> web.Response:
        old, patch = copy.deepcopy(self.objects[resource].get(where)), json.loads(await request.text())
        kind = request.content_type
        uid = patch.get("metadata", {}).get("uid") if isinstance(patch, dict) else None
        if uid is not None and (old is None or old["metadata"]["uid"] != uid):
            return _status(409 if part == "" else 404, "the uid is another one's")
        if old is None:
            if kind != "application/apply-patch+yaml" or part:
                return _status(404, "there is no such object")
            return web.json_response(self._create(resource, patch), status=201)
        if kind == "application/json-patch+json":
            new = json_patched(old, patch)
            if new is None:
                return _status(422, "the server rejected our request due to an error in our request")
        elif kind == "application/merge-patch+json":
            new = _merged(old, patch)
        elif kind == "application/apply-patch+yaml":
            # Of one manager: what it applied before and does not now is gone.
            new = {
                **old,
                ("status" if part == "status" else "spec"): patch.get("status" if part == "status" else "spec"),
            }
        else:
            return _status(415, kind)
        if part == "status":
            new = {**old, "status": new.get("status")}
        else:
            new = (
                {**new, "status": old["status"]} if "status" in old else {k: v for k, v in new.items() if k != "status"}
            )
        return web.json_response(self._store(resource, self.admit(new, old) if part == "" else new))

    # What it keeps

    def _create(self, resource: str, body: Object) -> Object:
        self._born += timedelta(seconds=1)
        made = {"uid": str(uuid4()), "creationTimestamp": _time(self._born), "generation": 1}
        body = {**self.admit(body, None), "metadata": {**made, **body["metadata"]}}
        return self._keep(resource, body, "ADDED")

    def _store(self, resource: str, body: Object) -> Object:
        where = body["metadata"]["namespace"], body["metadata"]["name"]
        old = self.objects[resource][where]
        changed = old.get("spec") != body.get("spec")
        body["metadata"]["generation"] = old["metadata"]["generation"] + changed
        if body == old:
            return old
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            del self.objects[resource][where]
            self._tell("DELETED", resource, self._stamp(body))
            return body
        return self._keep(resource, body, "MODIFIED")

    def _delete(self, resource: str, body: Object) -> None:
        body["metadata"]["deletionTimestamp"] = body["metadata"].get("deletionTimestamp") or _time(self._born)
        self._store(resource, body)

    def _keep(self, resource: str, body: Object, what: str) -> Object:
        body = self._stamp(copy.deepcopy(body))
        self.objects[resource][body["metadata"]["namespace"], body["metadata"]["name"]] = body
        self._tell(what, resource, body)
        return copy.deepcopy(body)

    def _stamp(self, body: Object) -> Object:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        return body

    def _tell(self, what: str, resource: str, body: Object) -> None:
        for watched, namespace, queue in self._watchers:
            if watched == resource and namespace in (None, body["metadata"]["namespace"]):
                queue.put_nowait({"type": what, "object": copy.deepcopy(body)})


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _status(code: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)


def throttled(times: int, every: int = 1, retry_after: str = "0") -> Fault:
    """So many requests are answered 429; with `every`, each request of that number is let through among them."""
    asked = itertools.count(1)

    def fault(_: web.Request) -> web.Response | None:
        number = next(asked)
        if number > times or (every > 1 and number % every == 0):
            return None
        return _status(429, "too many requests", **{"Retry-After": retry_after})

    return fault


def hanging(until: asyncio.Event) -> Fault:
    """Requests are taken and not answered, as by an API server whose etcd is away."""

    async def fault(_: web.Request) -> web.Response:
        await until.wait()
        return _status(504, "etcdserver: request timed out")

    return fault


def too_old(times: int) -> Fault:
    """So many watches begin, and end with 410: what they would go on from is forgotten."""
    left = [times]

    def fault(request: web.Request) -> web.Response | None:
        if request.query.get("watch") != "true" or left[0] == 0:
            return None
        left[0] -= 1
        error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        return web.json_response({"type": "ERROR", "object": error})

    return fault


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return patch
    new = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = _merged(new.get(key), value)
    return new


def json_patched(body: Object, operations: list[Object]) -> Object | None:
    """RFC 6902, as far as it is used; None where an operation cannot be done or a test fails."""
    body = copy.deepcopy(body)
    for operation in operations:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place: Any = body
        try:
            for part in way:
                place = place[int(part) if isinstance(place, list) else part]
            key = int(last) if isinstance(place, list) and last != "-" else last
            if operation["op"] == "test" and place[key] != operation["value"]:
                return None
            if operation["op"] == "remove":
                del place[key]
            if operation["op"] == "add":
                if isinstance(place, list):
                    place.insert(len(place) if key == "-" else int(key), operation["value"])
                else:
                    place[key] = operation["value"]
        except (KeyError, IndexError, TypeError):
            return None
    return body

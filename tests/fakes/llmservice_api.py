"""An API server for whoever reads `LLMService` resources and leaves orders on them: resources, pods and their logs over HTTP, in a thread.

Knows JSON patches of annotations, resource versions and RBAC's refusals. An operator can be played: with `answer` set, each order is taken
from the resource and answered in its status.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ORDER = "understudy.dev/command"
ROOT = "/apis/understudy.dev/v1alpha1"


class FakeApi:
    """`resources`: by (namespace, name). `denied`: HTTP methods that the caller has no right to."""

    def __init__(self) -> None:
        self.resources: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[tuple[str, str], str] = {}
        self.denied: set[str] = set()
        self.installed = True
        self.answer: str | None = None
        self.orders: list[dict[str, Any]] = []
        self.patches = 0
        self.managers: list[str | None] = []
        """Of each request on a resource."""
        self.before_patch: list[Any] = []
        """Called one by one before the patches, as another person who is quicker."""
        self.lock = threading.RLock()

    def put(self, name: str, status: dict[str, Any] | None = None, namespace: str = "default", **spec: Any) -> None:
        """Add or replace a resource."""
        with self.lock:
            before = self.resources.get((namespace, name))
            version = 1 if before is None else int(before["metadata"]["resourceVersion"]) + 1
            metadata = {"name": name, "namespace": namespace, "uid": "u", "resourceVersion": str(version)}
            resource = {"metadata": metadata, "spec": spec}
            self.resources[namespace, name] = resource if status is None else {**resource, "status": status}

    def pod(
        self, name: str, log: str, labels: dict[str, str], namespace: str = "default", container: str = "engine"
    ) -> None:
        """Add a pod of one container."""
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        self.pods.append({"metadata": metadata, "spec": {"containers": [{"name": container}]}})
        self.logs[name, container] = log

    def handle(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        """(status, document or text)."""
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.lock:
            if method in self.denied:
                return 403, {
                    "message": f'llmservices.understudy.dev is forbidden: User "jane" cannot {method.lower()} it'
                }
            if url.path.startswith(ROOT):
                self.managers.append(query.get("fieldManager"))
                return self._resource(method, url.path.removeprefix(ROOT).strip("/").split("/"), body)
            parts = url.path.removeprefix("/api/v1/namespaces/").split("/")
            if parts[-1] == "log":
                text = self.logs[parts[2], query["container"]]
                return 200, "\n".join(text.splitlines()[-int(query["tailLines"]) :])
            found = [one for one in self.pods if one["metadata"]["namespace"] == parts[0]]
            return 200, {"items": [one for one in found if selected(one["metadata"]["labels"], query["labelSelector"])]}

    def _resource(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        if not self.installed:
            return 404, {"message": "the server could not find the requested resource"}
        if parts == ["llmservices"]:
            return 200, {"items": list(self.resources.values())}
        namespace = parts[1]
        if len(parts) == 3:
            return 200, {"items": [one for key, one in self.resources.items() if key[0] == namespace]}
        if method == "PATCH" and self.before_patch:
            self.before_patch.pop(0)()
        found = self.resources.get((namespace, parts[3]))
        if found is None:
            return 404, {"message": f'llmservices.understudy.dev "{parts[3]}" not found'}
        return (200, found) if method == "GET" else self._patch(found, body)

    def _patch(self, resource: dict[str, Any], operations: list[dict[str, Any]]) -> tuple[int, Any]:
        metadata = resource["metadata"]
        for one in operations:
            field = one["path"].removeprefix("/metadata/")
            if one["op"] == "test":
                if metadata[field] != one["value"]:
                    return 422, {"message": "the server rejected our request due to an error in our request"}
            elif field == "/spec/model/pinned":
                resource["spec"]["model"]["pinned"] = one["value"]
            elif field == "annotations":
                metadata["annotations"] = one["value"]
            else:
                metadata["annotations"][field.removeprefix("annotations/").replace("~1", "/")] = one["value"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        self.patches += 1
        self.orders.append(json.loads(metadata["annotations"][ORDER]))
        if self.answer is not None:
            self.take(resource, self.answer)
        return 200, resource

    def take(self, resource: dict[str, Any], answer: str) -> None:
        """What the operator does with an order."""
        order = json.loads(resource["metadata"]["annotations"].pop(ORDER))
        resource["status"]["lastCommand"] = {
            "id": order["id"], "verb": order["verb"], "answer": answer, "by": f"claimed:{order['by']}", "at": "2026-01-01T00:00:00Z",
        }  # fmt: skip


def selected(labels: dict[str, str], selector: str) -> bool:
    """Whether labels meet a selector of `key=value` and `key in (a,b)` terms."""
    return all(labels.get(key) in values for key, values in terms(selector))


def terms(selector: str) -> list[tuple[str, list[str]]]:
    """The terms of a label selector."""
    found: list[tuple[str, list[str]]] = []
    rest = selector
    while rest:
        head = rest.split(",", 1)[0]
        if " in (" in head:
            key, rest = rest.split(" in (", 1)
            values, rest = rest.split(")", 1)
            found.append((key, values.split(",")))
            rest = rest.removeprefix(",")
        else:
            _, _, rest = rest.partition(",")
            key, value = head.split("=")
            found.append((key, [value]))
    return found


class Served:
    """The fake behind a port, as a context manager; `kubeconfig` writes a file that leads there."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, document = api.handle(self.command, self.path, body)
                data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = answer

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """A kubeconfig with one context, `here`."""
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": server}}],
                    "users": [{"name": "jane", "user": {"token": "t"}}],
                    "contexts": [
                        {"name": "here", "context": {"cluster": "here", "user": "jane", "namespace": namespace}}
                    ],
                }
            )
        )
        return path

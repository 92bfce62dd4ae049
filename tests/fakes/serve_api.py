"""A small Ray Serve: the REST API on a dashboard's port and, on the same server, the revisions' completions.

It keeps Serve's rules that matter here: a PUT replaces every declarative application, one that is gone drains first, and
applications deployed from code are left alone.
"""

from typing import Any

from aiohttp import web


class ServeApi:
    """Behind `app`; tests change `status`, `dead`, `logs` and `faults` and read `puts`."""

    def __init__(self) -> None:
        self.applications: dict[str, dict[str, Any]] = {}
        self.puts: list[dict[str, Any]] = []
        self.completions: list[tuple[str, str]] = []  # (path, model)
        self.completion_status = 200
        self.logs: dict[tuple[str, str], str] = {}  # (actor id, suffix) or (node id, file name) -> text
        self.faults: list[web.Response] = []  # answers to the next REST requests, instead of the real ones
        self.lose_writes = 0  # so many PUTs are undone at once, as by a second writer
        self.token: str | None = None
        self.app = web.Application()
        self.app.router.add_get("/api/serve/applications/", self._get)
        self.app.router.add_put("/api/serve/applications/", self._put)
        self.app.router.add_get("/api/v0/logs/file", self._log)
        self.app.router.add_get("/{service}/{name}/v1/models", self._models)
        self.app.router.add_post("/{service}/{name}/v1/completions", self._complete)

    def status(self, name: str, status: str, message: str = "", replicas: int = 1) -> None:
        """Moves an application on, as Serve's controller would."""
        app = self.applications[name]
        app.update(status=status, message=message)
        engine = app["deployments"].setdefault(f"LLMServer:{name}", {"recent_dead_replicas": []})
        engine["replicas"] = [
            {
                "state": "RUNNING",
                "actor_id": f"actor-{name}",
                "start_time_s": 1.0,
                "replica_id": f"{name}-{number}",
                "node_id": "node",
                "node_ip": "10.0.0.1",
                "log_file_path": f"/serve/{name}-{number}.log",
            }
            for number in range(replicas)
        ]
        if status == "DEPLOY_FAILED":
            engine["replicas"] = []
            engine["recent_dead_replicas"] = [{"state": "STOPPED", "actor_id": f"actor-{name}", "start_time_s": 1.0}]

    def foreign(self, name: str, source: str) -> None:
        """An application of somebody else."""
        config = {"name": name, "route_prefix": f"/{name}", "import_path": "their.module:app"}
        self.applications[name] = {**config, "source": source, "status": "RUNNING", "deployments": {}}
        if source == "declarative":
            self.applications[name]["deployed_app_config"] = config

    def finish_draining(self) -> None:
        self.applications = {n: a for n, a in self.applications.items() if a["status"] != "DELETING"}

    async def _get(self, request: web.Request) -> web.Response:
        return self._fault(request) or web.json_response(
            {"controller_info": {"actor_id": "c"} if self.applications else {}, "applications": self.applications}
            | (
                {"http_options": {"host": "127.0.0.1", "port": 1}, "proxy_location": "HeadOnly"}
                if self.applications
                else {}
            )
        )

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.json()
        if fault := self._fault(request):
            return fault
        self.puts.append(body)
        if self.lose_writes:
            self.lose_writes -= 1
            return web.Response()
        wanted = {app["name"]: app for app in body["applications"]}
        for name, app in self.applications.items():
            if name not in wanted and app["source"] == "declarative":
                app["status"] = "DELETING"
        for name, config in wanted.items():
            present = self.applications.get(name, {})
            if present.get("status") != "DELETING" and _code(present.get("deployed_app_config")) == _code(config):
                if present["deployed_app_config"] != config:  # other numbers of replicas: running ones stay
                    present |= {"deployed_app_config": config, "status": "DEPLOYING"}
                continue
            if self.applications.get(name, {}).get("deployed_app_config") != config or (
                self.applications[name]["status"] == "DELETING"
            ):
                self.applications[name] = {
                    "status": "DEPLOYING",
                    "source": "declarative",
                    "deployments": {},
                    "message": "",
                    "route_prefix": config["route_prefix"],
                    "deployed_app_config": config,
                }
        return web.Response()

    async def _log(self, request: web.Request) -> web.Response:
        if "filename" in request.query:
            text = self.logs.get((request.query["node_id"], request.query["filename"]))
        else:
            text = self.logs.get((request.query["actor_id"], request.query["suffix"]))
        return web.Response(text=text) if text is not None else web.Response(status=404)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": []}, status=self.completion_status)

    async def _complete(self, request: web.Request) -> web.Response:
        self.completions.append((request.path, (await request.json())["model"]))
        return web.json_response({"choices": [{"text": "w"}]}, status=self.completion_status)

    def _fault(self, request: web.Request) -> web.Response | None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        return self.faults.pop(0) if self.faults else None


def _code(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """What of an application makes Serve start it anew."""
    return {key: value for key, value in config.items() if key != "deployments"} if config is not None else None

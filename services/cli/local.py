"""The platform on one machine: MLflow, Ray, gateway and controller as child processes, from one YAML file
(`understudy serve --config`).

Called by the command line and by the demo. It starts, watches and ends processes; what they do is their own affair. Everything it
writes lies under the state folder: `understudy.db`, `registry.db`, `artifacts/`, `gateway/` (journal), `logs/`, `secrets.json`
(readable by the owner alone).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import yaml
from cryptography.fernet import Fernet
from pydantic import Field

from services.cli.processes import Child, LocalError, refuse_used_ports
from services.cli.prometheus import configuration
from services.rollout.resources import API_VERSION, Metadata
from services.rollout.resources_base import Resource
from services.serving.local_ray import TAG, LocalRay, end_tagged
from services.serving.preflight import examine

RULES: Final = Path(__file__).parents[2] / "charts/understudy/files/monitoring/rules.yaml"
"""Recording rules and alerts, in a checkout."""


class LocalSpec(Resource):
    """Where things run on this machine."""

    state_directory: Path = Field(
        default=Path("run"), description="Store, journals, logs, registry; relative to the file."
    )
    host: str = Field(default="127.0.0.1", description="Address everything listens on.")
    gateway_port: int = Field(default=8080, ge=1, le=65535, description="Port of the OpenAI API.")
    registry_port: int = Field(default=5000, ge=1, le=65535, description="Port of the MLflow server that is started.")
    controller_port: int = Field(
        default=8081, ge=1, le=65535, description="Port of the controller's health and metrics."
    )
    prometheus_port: int = Field(
        default=9090,
        ge=1,
        le=65535,
        description="Port of Prometheus, which is started where the program is on the PATH.",
    )
    registry_uri: str | None = Field(
        default=None, description="An MLflow server that runs already; none: one is started."
    )
    engine_environment: Path | None = Field(
        default=None, description="Virtual environment of Ray and vLLM; none: `.venv-engine` beside this program's own."
    )
    registry_environment: Path | None = Field(
        default=None,
        description="Virtual environment of the MLflow server; none: `.venv-mlflow` beside this program's own.",
    )

    @property
    def engine_folder(self) -> Path:
        """Where Ray and vLLM are installed."""
        return self.engine_environment or Path(sys.prefix).parent / ".venv-engine"

    @property
    def registry_folder(self) -> Path:
        """Where the MLflow server is installed."""
        return self.registry_environment or Path(sys.prefix).parent / ".venv-mlflow"


class LocalPlatform(Resource):
    """The document that says how the platform runs on one machine."""

    api_version: Literal["understudy.dev/v1alpha1"] = Field(default=API_VERSION, description="Version of this schema.")
    kind: Literal["LocalPlatform"] = Field(default="LocalPlatform", description="Always LocalPlatform.")
    metadata: Metadata = Field(description="Name.")
    spec: LocalSpec = Field(default_factory=LocalSpec, description="Where things run.")


class LocalStack:
    """All processes of one state folder; an async context manager that leaves nothing running."""

    def __init__(self, config: Path, platform: LocalPlatform, tell: Callable[[str], None], fresh: bool = False) -> None:
        """`fresh`: forget what an earlier run wrote into the state folder; `tell`: gets one line about what happens."""
        self.config, self.spec, self.tell, self.fresh = config, platform.spec, tell, fresh
        self.state = (config.parent / platform.spec.state_directory).resolve()
        self.store_url = f"sqlite:///{self.state / 'understudy.db'}"
        self.gateway_url = f"http://{self.spec.host}:{self.spec.gateway_port}/v1"
        self.registry_uri = self.spec.registry_uri or f"http://{self.spec.host}:{self.spec.registry_port}"
        self.children: dict[str, Child] = {}
        self.ray: LocalRay | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._open = contextlib.AsyncExitStack()
        self.secrets: dict[str, str] = {}

    @property
    def api_key(self) -> str:
        """The key that clients of this gateway send."""
        return self.secrets["api_key"]

    async def __aenter__(self) -> LocalStack:
        try:
            await self._prepare()
            self._session = await self._open.enter_async_context(aiohttp.ClientSession())
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._open.aclose()

    async def _prepare(self) -> None:
        """Lock the state folder, end what a killed run left, check ports, make keys, migrate the store."""
        from services.store import migrate

        (self.state / "logs").mkdir(parents=True, exist_ok=True)
        lock = self._open.enter_context((self.state / "lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalError(
                f"another Understudy runs on {self.state}: end it first, or set spec.stateDirectory"
            ) from None
        if left := await end_tagged(str(self.state)):
            self.tell(f"ended {left} processes that an earlier run had left")
        ports = {"spec.gatewayPort": self.spec.gateway_port, "spec.controllerPort": self.spec.controller_port}
        if self.spec.registry_uri is None:
            ports["spec.registryPort"] = self.spec.registry_port
        refuse_used_ports({f"{self.config} {field}": port for field, port in ports.items()})
        if not (self.spec.registry_folder / "bin/python").exists():
            raise LocalError(f"there is no environment at {self.spec.registry_folder}: run `make setup`")
        if self.fresh:
            self._forget()
        self.secrets = self._secrets()
        migrate(self.store_url)

    def _forget(self) -> None:
        """Empty the state folder, but for the lock that is held and the cache of artifacts, which digests keep right."""
        for entry in self.state.iterdir():
            if entry.is_dir() and entry.name != "cache":
                shutil.rmtree(entry)
            elif entry.is_file() and entry.name != "lock":
                entry.unlink()
        (self.state / "logs").mkdir()

    def _secrets(self) -> dict[str, str]:
        """Keys are made once for a state folder, so that users' hashes and clients' keys survive a restart."""
        path = self.state / "secrets.json"
        if not path.exists():
            made = {
                "api_key": f"sk-local-{secrets.token_hex(16)}",
                "unit_key": secrets.token_hex(32),
                "content_key": Fernet.generate_key().decode(),
            }
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(made, file)
        return dict(json.loads(path.read_text()))

    async def start_registry(self) -> None:
        """Start MLflow, unless the configuration names one that runs already."""
        if self.spec.registry_uri is None:
            await self._start(self._mlflow())

    async def start_engines(self) -> None:
        """Start Ray's head; engines come and go by Ray Serve's REST API."""
        found = await asyncio.to_thread(examine, self.spec.engine_folder, self.state)
        if missing := [f"{one.check}: {one.message}" for one in found if one.required and not one.ok]:
            raise LocalError("; ".join(missing))
        self.ray = LocalRay(self.spec.engine_folder, self.state, self.state / "logs" / "ray.log")
        self._open.push_async_callback(self.ray.stop)
        await self.ray.start()

    async def start_gateway(self) -> None:
        """Start the gateway."""
        await self._start(self._gateway())

    async def start_controller(self) -> None:
        """Start the rollout controller; registry and Ray must run."""
        await self._start(self._controller())

    async def start_prometheus(self) -> None:
        """Start Prometheus with the shipped rules, where there is one. What runs without it runs no worse."""
        program = shutil.which("prometheus")
        if program is None:
            self.tell("Prometheus is left out: there is no `prometheus` on the PATH")
            return
        try:
            refuse_used_ports({f"{self.config} spec.prometheusPort": self.spec.prometheus_port})
            await self._start(self._prometheus(program))
        except LocalError as error:
            self.tell(f"Prometheus is left out: {error}")

    async def _start(self, child: Child) -> None:
        self.children[child.name] = child
        child.start()
        self._open.push_async_callback(asyncio.to_thread, child.stop)
        await child.ready(self._session)
        keeper = asyncio.create_task(child.keep(self._session, self.tell))
        self._open.callback(keeper.cancel)
        self._keepers.append(keeper)

    def _child(self, name: str, argv: list[str], env: dict[str, str], health: str, within: float = 60.0) -> Child:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNDERSTUDY_")}
        log = self.state / "logs" / f"{name}.log"
        return Child(name, argv, inherited | env | {TAG: str(self.state), "PYTHONUNBUFFERED": "1"}, log, health, within)

    def _mlflow(self) -> Child:
        spec = self.spec
        argv = [str(spec.registry_folder / "bin/python"), "-m", "mlflow", "server", "--host", spec.host]
        argv += ["--port", str(spec.registry_port), "--workers", "1"]
        argv += ["--backend-store-uri", f"sqlite:///{self.state / 'registry.db'}"]
        argv += ["--artifacts-destination", str(self.state / "artifacts")]
        env = {
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        env["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"{spec.host}:{spec.registry_port},localhost:{spec.registry_port}"
        return self._child("mlflow", argv, env, f"http://{spec.host}:{spec.registry_port}/health", within=120)

    def _gateway(self) -> Child:
        spec = self.spec
        key = {"name": "local", "sha256": hashlib.sha256(self.api_key.encode()).hexdigest(), "scopes": ["pin", "debug"]}
        prefix = "UNDERSTUDY_GATEWAY_"
        env = {
            f"{prefix}STORE_URL": self.store_url,
            f"{prefix}STATE_DIR": str(self.state / "gateway"),
            f"{prefix}UNIT_KEY": self.secrets["unit_key"],
            f"{prefix}CONTENT_KEY": self.secrets["content_key"],
            f"{prefix}KEYS": json.dumps([key]),
            f"{prefix}HOST": spec.host,
            f"{prefix}PORT": str(spec.gateway_port),
            f"{prefix}NAME": "local",
        }
        health = f"http://{spec.host}:{spec.gateway_port}/healthz"
        return self._child("gateway", [sys.executable, "-m", "services.gateway"], env, health)

    def _controller(self) -> Child:
        assert self.ray is not None  # noqa: S101  (start_engines comes first)
        prefix = "UNDERSTUDY_CONTROLLER_"
        env = {
            f"{prefix}STORE_URL": self.store_url,
            f"{prefix}REGISTRY_URI": self.registry_uri,
            f"{prefix}RAY_DASHBOARD_URL": self.ray.dashboard_url,
            f"{prefix}RAY_PROXY_URL": self.ray.proxy_url,
            f"{prefix}RAY_DIRECT": "true",
            f"{prefix}RAY_TOKEN": self.ray.token,
            f"{prefix}CONTENT_KEY": self.secrets["content_key"],
            f"{prefix}ARTIFACT_CACHE": str(self.state / "cache"),
            f"{prefix}PORT": str(self.spec.controller_port),
            # The controller asks again by itself at its next look; MLflow's client would hold it up for minutes.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        }
        argv = [sys.executable, "-m", "services.rollout", "--config", str(self.config)]
        return self._child("controller", argv, env, f"http://{self.spec.host}:{self.spec.controller_port}/healthz")

    def _prometheus(self, program: str) -> Child:
        assert self.ray is not None  # noqa: S101  (start_engines comes first)
        spec = self.spec
        settings = configuration(
            [f"{spec.host}:{spec.gateway_port}"],
            [f"{spec.host}:{spec.controller_port}"],
            discovery=self.ray.metrics_targets,
            rules=[RULES] if RULES.exists() else [],
        )
        file = self.state / "prometheus.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        address = f"{spec.host}:{spec.prometheus_port}"
        argv = [program, f"--config.file={file}", f"--web.listen-address={address}"]
        argv += [f"--storage.tsdb.path={self.state / 'prometheus'}", "--storage.tsdb.retention.size=1GB"]
        return self._child("prometheus", argv, {}, f"http://{address}/-/ready")

    def addresses(self) -> dict[str, str]:
        """Where things lie, by name."""
        prometheus = {"Prometheus": f"http://{self.spec.host}:{self.spec.prometheus_port}"}
        return {
            "OpenAI API": self.gateway_url,
            "MLflow": self.registry_uri,
            "Ray": self.ray.dashboard_url if self.ray else "",
            **(prometheus if "prometheus" in self.children else {}),
            "store": self.store_url,
            "logs": str(self.state / "logs"),
        }


def interruptible() -> asyncio.Event:
    """An event that Ctrl-C, SIGTERM or a closed terminal sets. Repeated signals change nothing: ending takes seconds, and must be whole."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def hang_up() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in terminals:  # words to a terminal that is gone would be errors in the midst of ending
            os.dup2(nowhere, stream)
        stop.set()

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    return stop


async def run(config: Path, platform: LocalPlatform, tell: Callable[[str], None]) -> None:
    """Run the platform until Ctrl-C, SIGTERM or the terminal's end."""
    stop = interruptible()
    async with LocalStack(config, platform, tell) as stack:
        steps: list[tuple[str, Any]] = [
            ("registry, MLflow", stack.start_registry),
            ("Ray", stack.start_engines),
            ("gateway", stack.start_gateway),
            ("controller", stack.start_controller),
            ("Prometheus, where there is one", stack.start_prometheus),
        ]
        for name, start in steps:
            tell(f"starting {name}")
            starting = asyncio.ensure_future(start())
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if stop.is_set():
                starting.cancel()
                return
            await starting
        for name, address in stack.addresses().items():
            tell(f"{name}: {address}")
        tell(f"API key: {stack.api_key}")
        tell("running; Ctrl-C ends it")
        await stop.wait()
        tell("ending")


def serve(config: Path) -> int:
    """`understudy serve --config FILE`: run the platform on this machine until it is told to end."""
    from services.common.manifest import read

    documents = read(config, {"LocalPlatform": LocalPlatform})
    asyncio.run(run(config.resolve(), documents[0], print))
    return 0

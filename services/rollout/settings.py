"""The controller's settings, from the environment: `UNDERSTUDY_CONTROLLER_<FIELD>`. Built once by `__main__` and passed in.

Lists and objects are JSON. An empty value counts as none: charts leave variables empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.logs import Level


class ControllerSettings(BaseSettings):
    """What the controller must know of the outside; what is wanted of services stands in their resources."""

    model_config = SettingsConfigDict(env_prefix="UNDERSTUDY_CONTROLLER_", frozen=True, env_ignore_empty=True)

    store_url: str = Field(
        description="The store: sqlite:///folder/understudy.db or postgresql://user:password@host/database."
    )
    registry_uri: str = Field(description="MLflow's tracking server, e.g. http://127.0.0.1:5000.")
    registry_timeout: float = Field(default=10.0, gt=0, description="Seconds one question to the registry may take.")
    owner: str = Field(
        default="understudy",
        min_length=1,
        description="This controller's name in the registry's owner tags; one a cluster.",
    )
    ray_dashboard_url: str | None = Field(
        default=None,
        description="Ray's dashboard, where Serve's REST API is; none: in a cluster no platform `serve`, else http://127.0.0.1:8265.",
    )
    ray_proxy_url: str = Field(
        default="http://127.0.0.1:8000", description="Ray Serve's HTTP address as the gateways reach it."
    )
    ray_direct: bool = Field(
        default=False,
        description="Gateways reach the Ray nodes' ports 30000 to 31000: a revision with one replica is addressed past Ray's proxy.",
    )
    ray_token: SecretStr | None = Field(default=None, description="Ray's bearer token, where the cluster asks for one.")
    artifact_cache: Path = Field(
        default=Path("artifact-cache"), description="Folder for versions' files, readable by the engines."
    )
    artifact_volume: dict[str, str] | None = Field(
        default=None,
        description="The volume that `artifact_cache` lies on, as a resource's engine.artifactCache names it (JSON); none: no adapters on "
        "platform `kuberay`.",
    )
    content_key: SecretStr | None = Field(
        default=None, description="Fernet key of the judge's material, the gateways' own; none: nothing is judged."
    )
    namespace: str | None = Field(
        default=None, description="In a cluster: the namespace whose resources are acted on; none: the pod's own."
    )
    all_namespaces: bool = Field(default=False, description="In a cluster: act on the resources of all namespaces.")
    gateway_url: str | None = Field(
        default=None, description="In a cluster: the gateways' base URL, as resources show it."
    )
    engine_image: str | None = Field(
        default=None, description="Image of engines where the resource names none; none: no platform `kuberay`."
    )
    fetch_image: str | None = Field(
        default=None,
        description="Image that brings versions' files to pods, ours for MLflow; none: no platform `kuberay`.",
    )
    fetch_environment: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="For fetching: entries of a container's `env` (JSON), e.g. credentials of an object store by `valueFrom`.",
    )
    engine_memory: str = Field(
        default="8Gi", description="Memory of one engine worker on platform `kuberay` where the resource says nothing."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When nodes pull the images of pods of platform `kuberay`."
    )
    image_pull_secrets: tuple[str, ...] = Field(
        default=(), description="Secrets that open the images' registry, for pods of platform `kuberay` (JSON)."
    )
    webhook_certificates: Path | None = Field(
        default=None,
        description="Folder with tls.crt and tls.key of the admission webhook; none: no webhook, and who gave a command is a claim.",
    )
    webhook_port: int = Field(
        default=8443, ge=0, le=65535, description="Port of the admission webhook; 0: any free one."
    )
    log_level: Level = Field(default="info", description="Of this project's own log lines, at the start.")
    host: str = Field(default="127.0.0.1", description="Address of health and metrics.")
    port: int = Field(default=8081, ge=0, le=65535, description="Port of health and metrics; 0: any free one.")

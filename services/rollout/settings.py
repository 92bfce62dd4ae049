"""The controller's settings, from the environment: `UNDERSTUDY_CONTROLLER_<FIELD>`. Built once by `__main__` and passed in."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ControllerSettings(BaseSettings):
    """What the controller must know of the outside; what is wanted of services stands in their resources."""

    model_config = SettingsConfigDict(env_prefix="UNDERSTUDY_CONTROLLER_", frozen=True)

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
    ray_dashboard_url: str = Field(
        default="http://127.0.0.1:8265", description="Ray's dashboard, where Serve's REST API is."
    )
    ray_proxy_url: str = Field(
        default="http://127.0.0.1:8000", description="Ray Serve's HTTP address as the gateways reach it."
    )
    ray_token: SecretStr | None = Field(default=None, description="Ray's bearer token, where the cluster asks for one.")
    artifact_cache: Path = Field(
        default=Path("artifact-cache"), description="Folder for versions' files, readable by the engines."
    )
    content_key: SecretStr | None = Field(
        default=None, description="Fernet key of the judge's material, the gateways' own; none: nothing is judged."
    )
    host: str = Field(default="127.0.0.1", description="Address of health and metrics.")
    port: int = Field(default=8081, ge=0, le=65535, description="Port of health and metrics; 0: any free one.")

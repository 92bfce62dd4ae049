"""The gateway's settings: read once by `python -m services.gateway`, passed to `create_app`, never read again.

From the environment: the prefix `UNDERSTUDY_GATEWAY_`, two underscores between levels (`UNDERSTUDY_GATEWAY_LIMITS__BODY_BYTES=1048576`),
JSON for lists (`UNDERSTUDY_GATEWAY_KEYS='[{"name": "web", "sha256": "9f86..."}]'`).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common import routing
from services.common.logs import Level
from services.common.patterns import Pattern

Scope = Literal["pin", "debug"]
"""pin: may name a revision (`model: assistant@v3`). debug: sees in a header which revision and arm answered."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeySettings(_Section):
    """One API key. The key itself is nowhere: only its hash is configured."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Names the key in logs; also the one unit of all its requests that name no user."""
    tenant: Annotated[str, Field(max_length=128)] = "default"
    """Users of different tenants never share a unit; feedback reaches only its own tenant's requests."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, hexadecimal: `printf %s "$KEY" | sha256sum`."""
    scopes: frozenset[Scope] = frozenset()
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """This key's quota; None: `quotas.requests_per_minute`."""


class QuotaSettings(_Section):
    """Token buckets, one a key, in each gateway, over all services. A service declares its own quotas in its resource."""

    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Requests a minute of a key that sets none itself; None: unlimited."""
    burst_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How many seconds' worth of requests may come at once."""


class LimitSettings(_Section):
    """What one request may cost before it is refused."""

    body_bytes: Annotated[int, Field(gt=0)] = 2 * 1024 * 1024
    header_bytes: Annotated[int, Field(gt=0)] = 32 * 1024
    """Request line and headers together."""
    header_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a client may take to send its headers."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a client may take to send its body."""
    json_depth: Annotated[int, Field(gt=0)] = 64
    """Levels of nesting in the body."""
    schema_bytes: Annotated[int, Field(gt=0)] = 64 * 1024
    """Bytes of all JSON schemas, grammars and tools of one request together."""
    schema_bound: Annotated[int, Field(gt=0)] = 10_000
    """Largest `minItems`, `maxLength`, `{n}` and the like in a schema: an engine unrolls them into memory."""
    choices: Annotated[int, Field(gt=0)] = 16
    """Largest `n` and `best_of`, and number of prompts in one completion request."""


class RecorderSettings(_Section):
    """The way of observations, exposures and feedback to the store."""

    flush_seconds: Annotated[float, Field(gt=0)] = 0.2
    batch_rows: Annotated[int, Field(gt=0)] = 1000
    memory_rows: Annotated[int, Field(gt=0)] = 50_000
    """Records kept in memory while the store is away; the journal holds the rest."""
    segment_bytes: Annotated[int, Field(gt=0)] = 8 * 1024 * 1024
    journal_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024 * 1024
    """Disk that unstored records may take; beyond it they are dropped and counted."""


class TracingSettings(_Section):
    """Which traces are exported besides the sampled ones. Where they go, and how many are sampled, is OpenTelemetry's own to say:
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER` and their like (docs/tracing.md).
    """

    slow_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A request that took longer is exported."""
    slow_first_token_seconds: Annotated[float, Field(gt=0)] = 2.5
    """So is one whose first token came later than this after its arrival."""
    held_requests: Annotated[int, Field(ge=0)] = 10_000
    """Requests whose spans wait here for a bad mark, at most; 2 KB each."""
    held_content_bytes: Annotated[int, Field(ge=0)] = 32 * 1024 * 1024
    """Bytes of prompts and answers that may wait with them."""
    mlflow_uri: str | None = None
    """MLflow's server, where feedback becomes assessments of traces; None: feedback is told by spans alone."""


class ContentFilter(_Section):
    """Prompts to any service that match are refused with `content_filter`. A service declares its own filters in its resource."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    pattern: Annotated[str, Field(min_length=1)]
    """Regular expression (RE2's), searched in each text of the prompt, ignoring case unless it says `(?-i)`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        Pattern(value)
        return value

    def declared(self) -> routing.ContentFilter:
        """As a service would declare it."""
        return routing.ContentFilter(
            name=self.name, applies_to="prompt", pattern=self.pattern, action="block", max_length=1
        )


class GatewaySettings(BaseSettings):
    """All settings of one gateway process."""

    model_config = SettingsConfigDict(
        env_prefix="UNDERSTUDY_GATEWAY_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    store_url: str
    """Database of the store: `sqlite:////var/lib/understudy/understudy.db` or `postgresql+psycopg://...`."""
    state_dir: Path
    """Folder of the journal and the last routing table; one gateway process each."""
    unit_key: SecretStr
    """Key of the hash under which users appear in the store; the same in every gateway, at least 16 characters."""
    content_key: SecretStr | None = None
    """Fernet key that encrypts what the judge needs; None: no content is kept, whatever a service says."""
    keys: Annotated[tuple[KeySettings, ...], Field(min_length=1)]
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    name: Annotated[str, Field(min_length=1, max_length=128)] = Field(default_factory=socket.gethostname)
    """Names this gateway in leases and records; stable over restarts with the same `state_dir`."""
    address: str | None = None
    """Where others reach this gateway; shown in its lease."""
    poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between two looks at the routing table, each of which renews the lease."""
    lease_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without contact to the store after which everyone goes to stable."""
    eject_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for which a candidate that failed `eject_after` times in a row gets no request."""
    heavy_unit_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a service's traffic (per block of 1,000 requests) above which a unit is left out of the comparison."""
    connect_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds to open a connection to an engine."""
    engine_silence_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Seconds without an answer after which a request to an engine that may have ended for want of requests counts as held."""
    drain_notice_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds between SIGTERM (not ready any more) and closing the port, for load balancers to notice."""
    drain_seconds: Annotated[int, Field(gt=0)] = 60
    """Seconds that running answers may take to end after SIGTERM."""
    log_level: Level = "info"
    """Of this project's own log lines, at the start."""
    limits: LimitSettings = LimitSettings()
    quotas: QuotaSettings = QuotaSettings()
    recorder: RecorderSettings = RecorderSettings()
    tracing: TracingSettings = TracingSettings()
    content_filters: tuple[ContentFilter, ...] = ()

    @field_validator("unit_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 16:
            raise ValueError("unit_key must have at least 16 characters: users' hashes are only as secret as it is")
        return value

    @model_validator(mode="after")
    def _keys_differ(self) -> GatewaySettings:
        if len({key.sha256 for key in self.keys}) != len(self.keys):
            raise ValueError("keys: two entries have the same sha256")
        if len({(key.tenant, key.name) for key in self.keys}) != len(self.keys):
            raise ValueError("keys: two entries of one tenant have the same name")
        return self

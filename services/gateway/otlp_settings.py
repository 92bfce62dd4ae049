"""Where traces go: OpenTelemetry's standard environment variables, as its specification defines them, for OTLP over HTTP in protobuf.

Read once by `python -m services.gateway`. Traces are off unless an address is given; the specification's default address is used only with
`OTEL_TRACES_EXPORTER=otlp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from services.gateway.tracing import Sampler, make_sampler

PATH: Final = "/v1/traces"


class BadVariable(Exception):
    """Names the variable and says what is wrong."""


@dataclass(frozen=True)
class OtlpSettings:
    """One destination. Times in seconds; sizes in spans."""

    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 10.0
    compression: str = "gzip"
    certificate: Path | None = None
    """CAs that the destination's certificate is checked with; None: the system's."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    sampler: Sampler = field(default_factory=lambda: make_sampler("parentbased_always_on", None))
    queue: int = 2048
    """Most that wait; more are dropped and counted."""
    batch: int = 512
    delay: float = 5.0
    """Between two exports where no batch is full."""
    resource: Mapping[str, str] = field(default_factory=dict)


def otlp_settings(environ: Mapping[str, str]) -> OtlpSettings | None:
    """The destination; None: traces are off.

    Raises:
        BadVariable: a value that cannot be obeyed.
    """
    given = {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_") and value.strip()}

    def of(name: str) -> str | None:
        """The variable for traces, or else the one for all signals."""
        return given.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", given.get(f"OTEL_EXPORTER_OTLP_{name}"))

    exporter = given.get("OTEL_TRACES_EXPORTER")
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return None
    if exporter not in (None, "otlp"):
        raise BadVariable(f"OTEL_TRACES_EXPORTER: {exporter!r} is not known here; otlp or none")
    endpoint = _endpoint(given, wanted=exporter is not None)
    if endpoint is None:
        return None
    if (protocol := of("PROTOCOL")) not in (None, "http/protobuf"):
        raise BadVariable(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not spoken here; http/protobuf is, on port 4318"
        )
    if (compression := of("COMPRESSION") or "gzip") not in ("gzip", "none"):
        raise BadVariable(f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r}; gzip or none")
    certificate, client, key = of("CERTIFICATE"), of("CLIENT_CERTIFICATE"), of("CLIENT_KEY")
    return OtlpSettings(
        endpoint=endpoint,
        headers=_pairs("OTEL_EXPORTER_OTLP_HEADERS", of("HEADERS")),
        timeout=_number("OTEL_EXPORTER_OTLP_TIMEOUT", of("TIMEOUT"), 10_000) / 1000,
        compression=compression,
        certificate=Path(certificate) if certificate else None,
        client_certificate=Path(client) if client else None,
        client_key=Path(key) if key else None,
        sampler=_sampler(given),
        queue=int(_number("OTEL_BSP_MAX_QUEUE_SIZE", given.get("OTEL_BSP_MAX_QUEUE_SIZE"), 2048)),
        batch=int(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", given.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"), 512)),
        delay=_number("OTEL_BSP_SCHEDULE_DELAY", given.get("OTEL_BSP_SCHEDULE_DELAY"), 5_000) / 1000,
        resource={
            "service.name": "understudy-gateway",
            **_pairs("OTEL_RESOURCE_ATTRIBUTES", given.get("OTEL_RESOURCE_ATTRIBUTES")),
            **({"service.name": name} if (name := given.get("OTEL_SERVICE_NAME")) else {}),
        },
    )


def _endpoint(given: Mapping[str, str], *, wanted: bool) -> str | None:
    name, endpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", given.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if endpoint is None:
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        base = given.get(name) or ("http://localhost:4318" if wanted else None)
        if base is None:
            return None
        endpoint = base.rstrip("/") + PATH
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadVariable(f"{name}: {endpoint!r} is no address like http://collector:4318")
    return endpoint


def _sampler(given: Mapping[str, str]) -> Sampler:
    try:
        return make_sampler(
            given.get("OTEL_TRACES_SAMPLER", "parentbased_always_on"), given.get("OTEL_TRACES_SAMPLER_ARG")
        )
    except ValueError as error:
        raise BadVariable(f"OTEL_TRACES_SAMPLER: {error}") from None


def _pairs(name: str, text: str | None) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded (W3C Baggage)."""
    found = {}
    for entry in filter(None, (one.strip() for one in (text or "").split(","))):
        key, equals, value = entry.partition("=")
        if not equals or not key.strip():
            raise BadVariable(f"{name}: one of its entries is not key=value")  # not which: it may be a password
        found[unquote(key.strip())] = unquote(value.strip())
    return found


def _number(name: str, text: str | None, default: float) -> float:
    try:
        value = float(text) if text is not None else default
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise BadVariable(f"{name}: {text!r} is no number above 0")
    return value

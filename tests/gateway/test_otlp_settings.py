"""OpenTelemetry's environment variables, as its specification defines them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.common.identifiers import uuid7
from services.gateway.otlp_settings import BadVariable, OtlpSettings, otlp_settings
from services.gateway.tracing import Parent, Sampler

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def settings(**variables: str) -> OtlpSettings:
    found = otlp_settings({ENDPOINT: "http://c:4318"} | variables)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {"OTEL_TRACES_SAMPLER": "always_on"},
        {ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_asked_for(variables: dict[str, str]) -> None:
    assert otlp_settings(variables) is None


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({ENDPOINT: "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({ENDPOINT: "https://x.example/otlp"}, "https://x.example/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/own"}, "http://c/own"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
    ],
)
def test_the_address(variables: dict[str, str], endpoint: str) -> None:
    found = otlp_settings(variables)
    assert found is not None
    assert found.endpoint == endpoint


def test_the_variable_for_traces_comes_before_the_general_one() -> None:
    found = settings(
        OTEL_EXPORTER_OTLP_HEADERS="a=1", OTEL_EXPORTER_OTLP_TRACES_HEADERS="Authorization=Basic%20xyz%3D , b=2",
        OTEL_EXPORTER_OTLP_TIMEOUT="2500", OTEL_EXPORTER_OTLP_COMPRESSION="none", OTEL_EXPORTER_OTLP_CERTIFICATE="/ca.pem",
        OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10", OTEL_BSP_SCHEDULE_DELAY="250",
        OTEL_SERVICE_NAME="front", OTEL_RESOURCE_ATTRIBUTES="service.name=x,team=a%20b",
    )  # fmt: skip
    assert found.headers == {"Authorization": "Basic xyz=", "b": "2"}
    assert (found.timeout, found.compression, found.certificate) == (2.5, "none", Path("/ca.pem"))
    assert (found.queue, found.batch, found.delay) == (100, 10, 0.25)
    assert found.resource == {"service.name": "front", "team": "a b"}


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({ENDPOINT: "c:4318"}, "c:4318"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "zstd"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "sometimes"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "between 0 and 1"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "few"}, "OTEL_TRACES_SAMPLER"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_what_cannot_be_obeyed_is_told_by_name(variables: dict[str, str], word: str) -> None:
    with pytest.raises(BadVariable, match=word) as error:
        settings(**variables)
    assert "secret" not in str(error.value)  # it may be a password


@pytest.mark.parametrize(
    ("name", "argument", "alone", "asked", "refused"),
    [
        ("always_on", None, True, True, True),
        ("always_off", None, False, False, False),
        ("parentbased_always_on", None, True, True, False),
        ("parentbased_always_off", None, False, True, False),
        ("parentbased_traceidratio", "0", False, True, False),
        ("traceidratio", "1.0", True, True, True),
    ],
)
def test_samplers(name: str, argument: str | None, alone: bool, asked: bool, refused: bool) -> None:
    variables: dict[str, Any] = {"OTEL_TRACES_SAMPLER": name}
    sampler = settings(**variables, **({"OTEL_TRACES_SAMPLER_ARG": argument} if argument else {})).sampler
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parents = [None, Parent(trace_id, "b7ad6b7169203331", True), Parent(trace_id, "b7ad6b7169203331", False)]
    assert [sampler(trace_id, parent) for parent in parents] == [alone, asked, refused]


def test_a_share_is_met_by_ids_of_requests() -> None:
    sampler = Sampler(0.2, True)
    kept = sum(sampler(uuid7().replace("-", ""), None) for _ in range(5000))
    assert 850 <= kept <= 1150  # 5.3 standard deviations

"""The chart's templates: the parts that other parts rely on, and what each is told."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

from services.gateway.otlp_settings import otlp_settings
from services.gateway.settings import GatewaySettings
from services.gateway.tracing import Sampler
from services.rollout.settings import ControllerSettings
from tests.charts.conftest import CHART, Chart
from tests.fakes.rendered_chart import EVERYTHING, HA, Objects, env, named

MLFLOW = "http://demo-mlflow:5000"
COLLECTOR = "http://collector:4318"


def test_the_layout_that_other_parts_rely_on(chart: Chart) -> None:
    objects = chart({"ray": {"enabled": True}})
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert made >= {
        ("Deployment", "demo-gateway"),
        ("Deployment", "demo-controller"),
        ("Deployment", "demo-mlflow"),
        ("StatefulSet", "demo-postgresql"),
        ("Deployment", "demo-ray-head"),
        ("Deployment", "demo-ray-worker"),
        ("Job", "demo-migrate"),
        ("PersistentVolumeClaim", "demo-models"),
        ("CustomResourceDefinition", "llmservices.understudy.dev"),
    }
    ports = {
        (one["metadata"]["name"], port["port"])
        for one in objects
        if one["kind"] == "Service"
        for port in one["spec"]["ports"]
    }
    assert ports == {
        ("demo-gateway", 8080),
        ("demo-controller", 8081),
        ("demo-mlflow", 5000),
        ("demo-postgresql", 5432),
        ("demo-ray-head", 6379),
        ("demo-ray-head", 8265),
        ("demo-ray-head", 8000),
    }
    controller = env(objects, "Deployment", "demo-controller")
    assert controller["UNDERSTUDY_CONTROLLER_RAY_PROXY_URL"] == "http://demo-ray-head:8000"
    assert controller["UNDERSTUDY_CONTROLLER_OWNER"] == "ns1/demo"
    mounts = {
        (name, mount["mountPath"])
        for name in ("demo-controller", "demo-ray-head", "demo-ray-worker")
        for mount in named(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "models"
    }
    assert {path for _, path in mounts} == {controller["UNDERSTUDY_CONTROLLER_ARTIFACT_CACHE"]}
    assert len(mounts) == 3


def test_the_gateways_environment_is_one_that_it_accepts(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"POLL_SECONDS": 2, "LIMITS__BODY_BYTES": 33554432, "QUOTAS__REQUESTS_PER_MINUTE": 0.5}
    extra = {"name": "shop", "tenant": "shop", "sha256": "ab" * 32, "scopes": [], "requests_per_minute": 60}
    objects = chart({"gateway": {"settings": settings, "apiKeys": {"additional": [extra]}}})
    secrets = {one["metadata"]["name"]: one["stringData"] for one in objects if one["kind"] == "Secret"}
    for name, value in env(objects, "Deployment", "demo-gateway").items():
        reference = value.get("secretKeyRef") if isinstance(value, dict) else None
        monkeypatch.setenv(name, secrets[reference["name"]][reference["key"]] if reference else str(value))
    accepted = GatewaySettings()
    key = secrets["demo-api-keys"]["api_key"]
    assert [one.sha256 for one in accepted.keys] == [hashlib.sha256(key.encode()).hexdigest(), "ab" * 32]
    assert accepted.keys[1].requests_per_minute == 60
    assert (accepted.poll_seconds, accepted.limits.body_bytes, accepted.quotas.requests_per_minute) == (
        2,
        33554432,
        0.5,
    )
    assert accepted.content_key is not None
    Fernet(accepted.content_key.get_secret_value().encode())
    pod = named(objects, "Deployment", "demo-gateway")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > accepted.drain_notice_seconds + accepted.drain_seconds


@pytest.mark.parametrize(
    ("tracing", "endpoint", "headers", "mlflow"),
    [
        ({"endpoint": COLLECTOR}, COLLECTOR, None, None),
        ({"endpoint": COLLECTOR, "headers": {"existingSecret": "s"}}, COLLECTOR, {"name": "s", "key": "headers"}, None),
        ({"mlflow": {"enabled": True, "experimentId": "7"}}, MLFLOW, "x-mlflow-experiment-id=7", MLFLOW),
        (
            {"mlflow": {"enabled": True}, "headers": {"existingSecret": "s"}},
            MLFLOW,
            "x-mlflow-experiment-id=0,$(TRACING_HEADERS)",
            MLFLOW,
        ),
        ({"endpoint": COLLECTOR, "mlflow": {"enabled": True}}, COLLECTOR, None, MLFLOW),
    ],
)
def test_traces_go_where_the_values_say(
    chart: Chart, tracing: dict[str, Any], endpoint: str, headers: Any, mlflow: str | None
) -> None:
    objects = chart({"tracing": {"ratio": 0.05, "slowSeconds": 10, **tracing}})
    given = env(objects, "Deployment", "demo-gateway")
    found = given.get("OTEL_EXPORTER_OTLP_HEADERS")
    assert (found["secretKeyRef"] if isinstance(found, dict) else found) == headers
    assert given.get("UNDERSTUDY_GATEWAY_TRACING__MLFLOW_URI") == mlflow
    otlp = otlp_settings({name: value for name, value in given.items() if value != found})
    assert otlp is not None
    assert (otlp.endpoint, otlp.sampler) == (f"{endpoint}/v1/traces", Sampler(0.05, True))
    assert float(given["UNDERSTUDY_GATEWAY_TRACING__SLOW_SECONDS"]) == 10
    policy = named(objects, "NetworkPolicy", "demo-mlflow")["spec"]["ingress"][0]["from"]
    peers = [one["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component") for one in policy]
    assert ("gateway" in peers) == (mlflow is not None)


def test_traces_are_off_and_logs_at_info_unless_asked_for(chart: Chart) -> None:
    given = env(chart({}), "Deployment", "demo-gateway")
    assert not [name for name in given if name.startswith("OTEL_")]
    assert given["UNDERSTUDY_GATEWAY_LOG_LEVEL"] == "info"
    assert (
        env(chart({"logging": {"level": "debug"}}), "Deployment", "demo-controller")["UNDERSTUDY_CONTROLLER_LOG_LEVEL"]
        == "debug"
    )


def test_the_controllers_environment_names_settings_that_exist(chart: Chart) -> None:
    prefix = "UNDERSTUDY_CONTROLLER_"
    for variant in (EVERYTHING, {}):
        given = {name for name in env(chart(variant), "Deployment", "demo-controller") if name.startswith(prefix)}
        known = {prefix + name.upper() for name in ControllerSettings.model_fields}
        assert given <= known


def test_mlflow_takes_its_services_names_and_no_password_is_an_argument(chart: Chart) -> None:
    objects = chart({"mlflow": {"allowedHosts": ["mlflow.example.com"]}})
    hosts = env(objects, "Deployment", "demo-mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"demo-mlflow:*", "demo-mlflow.ns1.svc.cluster.local:*", "localhost:*", "mlflow.example.com"} <= set(hosts)
    sqlite = env(chart({"mlflow": {"backend": {"kind": "sqlite"}}}), "Deployment", "demo-mlflow")
    assert sqlite["MLFLOW_BACKEND_STORE_URI"] == "sqlite:////var/lib/mlflow/mlflow.db"


def test_ones_own_database_registry_and_ray_are_used(chart: Chart) -> None:
    objects = chart(
        {
            "postgresql": {"enabled": False},
            "store": {"existingSecret": "own-store", "key": "dsn"},
            "mlflow": {"enabled": False, "uri": "https://mlflow.example.com"},
            "ray": {
                "existing": {"dashboardUrl": "http://ray:8265", "proxyUrl": "http://ray:8000"},
                "tokenSecret": "own-ray",
            },
            "models": {"existingClaim": "own-models"},
        }
    )
    assert not any(one["kind"] in ("StatefulSet", "PersistentVolumeClaim") for one in objects)
    controller = env(objects, "Deployment", "demo-controller")
    assert controller["UNDERSTUDY_CONTROLLER_STORE_URL"] == {"secretKeyRef": {"name": "own-store", "key": "dsn"}}
    assert controller["UNDERSTUDY_CONTROLLER_REGISTRY_URI"] == "https://mlflow.example.com"
    assert controller["UNDERSTUDY_CONTROLLER_RAY_TOKEN"] == {"secretKeyRef": {"name": "own-ray", "key": "token"}}
    volumes = named(objects, "Deployment", "demo-controller")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "own-models"}} in volumes


def test_the_controller_knows_the_volume_through_which_engines_get_adapters(chart: Chart) -> None:
    def volume(**values: Any) -> Any:
        return env(chart(values), "Deployment", "demo-controller").get("UNDERSTUDY_CONTROLLER_ARTIFACT_VOLUME")

    kuberay = {"kuberay": {"enabled": True}}
    assert volume(ray={"enabled": False}, controller=kuberay) is None, "nobody but the controller has it"
    assert volume(ray={"enabled": True}) == '{"claim":"demo-models"}'
    assert volume(ray={"enabled": True}, models={"kind": "hostPath", "hostPath": "/m"}) == '{"hostPath":"/m"}'
    own = {"existingClaim": "own-models"}
    objects = chart({"ray": {"enabled": False}, "controller": kuberay, "models": own})
    assert volume(ray={"enabled": False}, controller=kuberay, models=own) == '{"claim":"own-models"}'
    volumes = named(objects, "Deployment", "demo-controller")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "own-models"}} in volumes


def test_migrations_run_before_what_needs_them(chart: Chart) -> None:
    def hook(objects: Objects) -> str | None:
        return named(objects, "Job", "demo-migrate")["metadata"].get("annotations", {}).get("helm.sh/hook")

    assert hook(chart({})) is None  # the trial database is part of the same installation
    assert hook(chart({}, upgrade=True)) == "pre-install,pre-upgrade"
    assert hook(chart(HA)) == "pre-install,pre-upgrade"


def test_the_definition_is_the_generated_one_and_stays(chart: Chart) -> None:
    generated = yaml.safe_load((CHART / "files/llmservices.yaml").read_text())
    definition = named(chart({}), "CustomResourceDefinition", "llmservices.understudy.dev")
    assert definition["spec"] == generated["spec"]
    assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    goes = named(chart({"crds": {"keep": False}}), "CustomResourceDefinition", "llmservices.understudy.dev")
    assert "helm.sh/resource-policy" not in goes["metadata"].get("annotations", {})

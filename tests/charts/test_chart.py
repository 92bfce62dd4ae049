"""The chart's templates: what any user of it relies on, for the defaults, the value files and everything switched on."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

from services.gateway.otlp_settings import otlp_settings
from services.gateway.settings import GatewaySettings
from services.gateway.tracing import Sampler
from services.rollout.settings import ControllerSettings

CHART = Path(__file__).parents[2] / "charts/understudy"
Objects = list[dict[str, Any]]
Chart = Callable[..., Objects]

HA = {
    "store": {"existingSecret": "own-store"},
    "mlflow": {"backend": {"kind": "existingSecret", "existingSecret": "own-mlflow"}},
}
EVERYTHING: dict[str, Any] = {
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": [{"secretName": "own-tls"}]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["llm.example.com"]},
    },
    "controller": {
        "replicas": 2,
        "kuberay": {"enabled": True},
        "webhook": {"enabled": True},
        "watchAllNamespaces": True,
    },
    "ray": {"enabled": True},
    "monitoring": {part: {"enabled": True} for part in ("serviceMonitor", "podMonitor", "rules", "dashboards")},
}
OWN = {"own-store", "own-mlflow", "own-tls"}


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


MLFLOW = "http://demo-mlflow:5000"


def value_file(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / f"values-{name}.yaml").read_text()))


VARIANTS = {
    "defaults": {},
    "cpu": value_file("cpu"),
    "gpu": value_file("gpu"),
    "ha": merged(value_file("gpu"), value_file("ha"), HA),
    "everything": EVERYTHING,
}


@pytest.fixture(scope="module", params=VARIANTS)
def rendered(request: pytest.FixtureRequest, chart: Chart) -> Objects:
    return chart(VARIANTS[request.param])


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def has(objects: Objects, kind: str, name: str) -> bool:
    return any(one["kind"] == kind and one["metadata"]["name"] == name for one in objects)


def pods(objects: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(object, pod template) of everything that makes pods."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one, one
        elif one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one, one["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def env(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    pod = named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in pod["env"]}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# --- for every way to install it


def test_every_pod_meets_the_restricted_standard(rendered: Objects) -> None:
    seen = 0
    for owner, pod in pods(rendered):
        where = f"{owner['kind']} {owner['metadata']['name']}"
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] > 0, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for volume in spec.get("volumes", []):
            assert volume.keys() & {"emptyDir", "secret", "persistentVolumeClaim"}, f"{where}: {volume}"
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert not any("hostPort" in port for port in container.get("ports", [])), where
            seen += 1
    assert seen >= 6


def test_every_container_has_requests_limits_and_a_pinned_image(rendered: Objects) -> None:
    for owner, pod in pods(rendered):
        for container in containers(pod):
            where = f"{owner['kind']} {owner['metadata']['name']}/{container['name']}"
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() >= {"cpu", "memory"}, where
            assert re.fullmatch(r"understudy-[a-z]+:\d+\.\d+\.\d+", container["image"]), where


def test_every_server_has_probes(rendered: Objects) -> None:
    for owner, pod in pods(rendered):
        if owner["kind"] in ("Deployment", "StatefulSet"):
            for container in pod["spec"]["containers"]:
                assert container.keys() >= {"readinessProbe", "livenessProbe", "startupProbe"}, owner["metadata"][
                    "name"
                ]
                ports = {port["name"] for port in container["ports"]}
                for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                    assert container[probe].get("httpGet", {}).get("port", next(iter(ports))) in ports


def test_mounts_have_volumes_and_temporary_files_a_place(rendered: Objects) -> None:
    for owner, pod in pods(rendered):
        claims = {claim["metadata"]["name"] for claim in owner["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | claims
        mounts = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert mounts == volumes, owner["metadata"]["name"]


def test_selectors_find_their_own_pods_only(rendered: Objects) -> None:
    templates = [(owner, pod["metadata"]["labels"]) for owner, pod in pods(rendered)]
    for owner, labels in templates:
        if owner["kind"] in ("Deployment", "StatefulSet"):
            selector = owner["spec"]["selector"]["matchLabels"]
            assert matches(selector, labels)
            assert [other["metadata"]["name"] for other, found in templates if matches(selector, found)] == [
                owner["metadata"]["name"]
            ]
    for service in (one for one in rendered if one["kind"] == "Service"):
        (found,) = [
            pod for owner, pod in pods(rendered) if matches(service["spec"]["selector"], pod["metadata"]["labels"])
        ]
        ports = {port["name"] for port in found["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for one in (one for one in rendered if one["kind"] == kind):
            selector = one["spec"].get("selector") or one["spec"]["podSelector"]
            if "matchLabels" in selector:
                assert any(matches(selector["matchLabels"], labels) for _, labels in templates), one["metadata"]["name"]


def test_everything_carries_the_common_labels(rendered: Objects) -> None:
    for one in rendered:
        wanted = {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component", "part-of", "managed-by")}
        assert wanted <= one["metadata"]["labels"].keys(), one["metadata"]["name"]


def test_what_is_referred_to_exists(rendered: Objects) -> None:
    def names(kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in rendered if one["kind"] == kind}

    for _, pod in pods(rendered):
        assert pod["spec"].get("serviceAccountName", "default") in names("ServiceAccount") | {"default"}
        for volume in pod["spec"].get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in names("PersistentVolumeClaim")
            if secret := volume.get("secret"):
                assert secret["secretName"] in names("Secret")
        for container in containers(pod):
            for variable in container["env"]:
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    secret_names = names("Secret")
                    assert reference["name"] in secret_names | OWN, variable
                    if reference["name"] in secret_names:
                        assert reference["key"] in named(rendered, "Secret", reference["name"])["stringData"]


def test_secrets_are_nowhere_but_in_secrets(rendered: Objects) -> None:
    generated = {
        text
        for one in rendered
        if one["kind"] == "Secret"
        for key, text in {**one.get("stringData", {}), **one.get("data", {})}.items()
        if key != "ca.crt"
    }
    assert len(generated) >= 3
    others = json.dumps([one for one in rendered if one["kind"] != "Secret"])
    assert [text for text in generated if text in others] == []
    for _, pod in pods(rendered):
        for container in containers(pod):
            for variable in container["env"]:
                if re.search(r"PASSWORD|TOKEN$|_KEY$|_KEYS$", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], variable
            assert not re.search(r"://[^/]*:[^/]*@", json.dumps(container.get("args", [])))


def test_only_the_controller_and_the_uninstall_job_reach_the_api_server(rendered: Objects) -> None:
    with_token = {
        owner["metadata"]["name"] for owner, pod in pods(rendered) if pod["spec"]["automountServiceAccountToken"]
    }
    assert with_token == {"demo-controller", "demo-uninstall"}
    assert not any(one["automountServiceAccountToken"] for one in rendered if one["kind"] == "ServiceAccount")


def test_rights_name_what_they_are_for(rendered: Objects) -> None:
    for one in (one for one in rendered if one["kind"] in ("Role", "ClusterRole")):
        for rule in one["rules"]:
            flat = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"*", "secrets", "configmaps", "serviceaccounts", "pods/exec", "escalate", "bind"} & set(flat), (
                rule
            )


def test_an_upgrade_that_changes_nothing_restarts_nothing(chart: Chart) -> None:
    first, second = chart(EVERYTHING), chart(EVERYTHING)
    for kind in ("Deployment", "StatefulSet"):
        assert [one for one in first if one["kind"] == kind] == [one for one in second if one["kind"] == kind]


# --- what each part is told


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


COLLECTOR = "http://collector:4318"


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


def test_engines_accept_the_gateway_the_controller_and_their_peers_only(chart: Chart) -> None:
    objects = chart({"ray": {"enabled": True}, "controller": {"kuberay": {"enabled": True}}})

    def peers(policy: str) -> set[tuple[str, str]]:
        found = set()
        for rule in named(objects, "NetworkPolicy", policy)["spec"]["ingress"]:
            ports = ",".join(str(port["port"]) for port in rule.get("ports", [])) or "any"
            for peer in rule["from"]:
                selector = peer["podSelector"]
                labels = selector.get("matchLabels", {})
                who = labels.get("app.kubernetes.io/component") or labels.get("app.kubernetes.io/name")
                found.add((who or selector["matchExpressions"][0]["key"], ports))
        return found

    assert peers("demo-ray") == {
        ("ray-head", "any"),
        ("ray-worker", "any"),
        ("gateway", "8000,30000"),
        ("controller", "8000,30000"),
        ("controller", "8265"),
        ("test", "8265"),
    }
    assert peers("demo-engines") == {
        ("understudy.dev/service", "any"),
        ("gateway", "8000"),
        ("controller", "8000"),
        ("kuberay-operator", "8265,8000,52365"),
    }
    assert peers("demo-postgresql") == {(who, "postgresql") for who in ("gateway", "controller", "migrate", "mlflow")}


def test_health_and_metrics_stay_inside(chart: Chart) -> None:
    objects = chart(EVERYTHING)
    (rule,) = named(objects, "Ingress", "demo-gateway")["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1"]
    (match,) = named(objects, "HTTPRoute", "demo-gateway")["spec"]["rules"][0]["matches"]
    assert match["path"] == {"type": "PathPrefix", "value": "/v1"}


# --- rights


def rules(objects: Objects, kind: str, name: str) -> dict[str, set[str]]:
    return {
        f"{group}/{resource}": set(rule["verbs"])
        for rule in named(objects, kind, name)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_controllers_rights_are_the_least(chart: Chart) -> None:
    held = rules(chart({}), "Role", "demo-controller")
    assert held == {
        "understudy.dev/llmservices": {"get", "list", "watch", "patch"},
        "understudy.dev/llmservices/status": {"get", "patch"},
        "/events": {"get", "create", "patch"},
    }
    with_kuberay = rules(chart({"controller": {"kuberay": {"enabled": True}}}), "Role", "demo-controller")
    assert with_kuberay == held | {
        "ray.io/rayservices": {"get", "list", "create", "patch", "delete"},
        "understudy.dev/llmservices/finalizers": {"update"},
        "/pods": {"list"},
        "/pods/log": {"get"},
    }


def test_watching_all_namespaces_takes_a_cluster_role_and_else_there_is_none(chart: Chart) -> None:
    wide = chart({"controller": {"watchAllNamespaces": True}})
    assert not has(wide, "Role", "demo-controller")
    assert rules(wide, "ClusterRole", "ns1-demo-controller") == rules(chart({}), "Role", "demo-controller")
    assert env(wide, "Deployment", "demo-controller")["UNDERSTUDY_CONTROLLER_ALL_NAMESPACES"] == "true"
    own = chart({"rbac": {"aggregate": False}})
    assert not any(one["kind"].startswith("ClusterRole") for one in own)


# --- generated secrets


def test_upgrades_keep_what_was_generated(chart: Chart, secrets_api: Any) -> None:
    values = {"ray": {"enabled": True}, "controller": {"webhook": {"enabled": True}}, "crds": {"install": False}}
    before = {one["metadata"]["name"]: one for one in chart(values, api=secrets_api.address) if one["kind"] == "Secret"}
    assert len(before) == 5
    for name, secret in before.items():
        data = {key: base64.b64encode(text.encode()).decode() for key, text in secret.get("stringData", {}).items()}
        owner = {"meta.helm.sh/release-name": "demo", "meta.helm.sh/release-namespace": "ns1"}
        stored = {"apiVersion": "v1", "kind": "Secret", "data": {**secret.get("data", {}), **data}}
        stored["metadata"] = {"name": name, "labels": secret["metadata"]["labels"], "annotations": owner}
        secrets_api.secrets[name] = stored
    after = {one["metadata"]["name"]: one for one in chart(values, api=secrets_api.address) if one["kind"] == "Secret"}
    assert after == before
    more = merged(values, {"gateway": {"apiKeys": {"additional": [{"name": "shop", "sha256": "ab" * 32}]}}})
    changed = {one["metadata"]["name"]: one for one in chart(more, api=secrets_api.address) if one["kind"] == "Secret"}
    assert changed["demo-api-keys"]["stringData"]["api_key"] == before["demo-api-keys"]["stringData"]["api_key"]
    assert len(json.loads(changed["demo-api-keys"]["stringData"]["keys.json"])) == 2


def test_two_installations_share_no_secret(chart: Chart) -> None:
    first, second = (
        {text for one in chart({}) if one["kind"] == "Secret" for text in one["stringData"].values()} for _ in range(2)
    )
    assert not first & second


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"keys": {"existingSecret": "mine"}}, "demo-keys"),
        ({"gateway": {"apiKeys": {"existingSecret": "mine"}}}, "demo-api-keys"),
        ({"postgresql": {"existingSecret": "mine"}}, "demo-postgresql"),
        ({"ray": {"enabled": True, "tokenSecret": "mine"}}, "demo-ray"),
    ],
)
def test_each_secret_can_be_ones_own(chart: Chart, values: dict[str, Any], name: str) -> None:
    objects = chart(values)
    assert not has(objects, "Secret", name)
    others = json.dumps([one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "Job")])
    assert f'{{"name": "{name}", "key"' not in others
    assert '"mine"' in others


def test_the_webhooks_certificate_is_trusted_by_its_configuration(chart: Chart) -> None:
    objects = chart({"controller": {"webhook": {"enabled": True, "failurePolicy": "Fail"}}})
    ca = named(objects, "Secret", "demo-controller-webhook")["data"]["ca.crt"]
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (hook,) = named(objects, kind, "ns1-demo-controller")["webhooks"]
        assert hook["clientConfig"]["caBundle"] == ca
        assert hook["failurePolicy"] == "Fail"
        assert hook["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ns1"}}
    managed = chart({"controller": {"webhook": {"enabled": True, "certManager": {"enabled": True}}}})
    assert has(managed, "Certificate", "demo-controller-webhook")
    assert not has(managed, "Secret", "demo-controller-webhook")


# --- switches


@pytest.mark.parametrize(
    ("values", "kind", "name"),
    [
        ({"gateway": {"autoscaling": {"enabled": True}}}, "HorizontalPodAutoscaler", "demo-gateway"),
        ({"gateway": {"keda": {"enabled": True, "triggers": [{"type": "cpu"}]}}}, "ScaledObject", "demo-gateway"),
        ({"gateway": {"persistence": {"enabled": True}}}, "StatefulSet", "demo-gateway"),
        ({"gateway": {"ingress": {"enabled": True}}}, "Ingress", "demo-gateway"),
        ({"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}}}, "HTTPRoute", "demo-gateway"),
        ({"controller": {"webhook": {"enabled": True}}}, "Secret", "demo-controller-webhook"),
        ({"controller": {"replicas": 2}}, "PodDisruptionBudget", "demo-controller"),
        ({"controller": {"kuberay": {"enabled": True}}}, "NetworkPolicy", "demo-engines"),
        ({"ray": {"enabled": True}}, "Deployment", "demo-ray-head"),
    ],
)
def test_what_is_off_unless_asked_for(chart: Chart, values: dict[str, Any], kind: str, name: str) -> None:
    assert not has(chart({}), kind, name)
    assert has(chart(values), kind, name)


@pytest.mark.parametrize(
    ("values", "kind", "name"),
    [
        ({"gateway": {"podDisruptionBudget": {"enabled": False}}}, "PodDisruptionBudget", "demo-gateway"),
        ({"gateway": {"serviceAccount": {"create": False}}}, "ServiceAccount", "demo-gateway"),
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy", "demo-gateway"),
        ({"mlflow": {"enabled": False, "uri": "http://mlflow"}}, "Deployment", "demo-mlflow"),
        ({"postgresql": {"enabled": False}, **HA}, "StatefulSet", "demo-postgresql"),
        ({"migrations": {"enabled": False}}, "Job", "demo-migrate"),
        ({"uninstall": {"enabled": False}}, "Job", "demo-uninstall"),
        ({"crds": {"install": False}}, "CustomResourceDefinition", "llmservices.understudy.dev"),
    ],
)
def test_what_is_on_unless_refused(chart: Chart, values: dict[str, Any], kind: str, name: str) -> None:
    assert has(chart({}), kind, name)
    assert not has(chart(values), kind, name)


def test_an_autoscaler_is_not_overruled(chart: Chart) -> None:
    assert named(chart({}), "Deployment", "demo-gateway")["spec"]["replicas"] == 2
    scaled = chart({"gateway": {"autoscaling": {"enabled": True}, "persistence": {"enabled": True}}})
    assert "replicas" not in named(scaled, "StatefulSet", "demo-gateway")["spec"]
    target = named(scaled, "HorizontalPodAutoscaler", "demo-gateway")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", "demo-gateway")


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("gateway",), "Deployment", "demo-gateway"),
        (("controller",), "Deployment", "demo-controller"),
        (("mlflow",), "Deployment", "demo-mlflow"),
        (("postgresql",), "StatefulSet", "demo-postgresql"),
        (("ray", "head"), "Deployment", "demo-ray-head"),
        (("ray", "worker"), "Deployment", "demo-ray-worker"),
    ],
)
def test_what_a_user_adds_arrives(chart: Chart, path: tuple[str, ...], kind: str, name: str) -> None:
    added: dict[str, Any] = {
        "podAnnotations": {"example.com/a": "b"},
        "podLabels": {"team": "search"},
        "extraEnv": [{"name": "EXTRA", "value": "1"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podSecurityContext": {"runAsUser": 1000},
    }
    nested = added
    for part in reversed(path):
        nested = {part: nested}
    shared = {
        "extraLabels": {"cost": "42"},
        "extraEnv": [{"name": "SHARED", "value": "2"}],
        "imagePullSecrets": ["login"],
    }
    objects = chart(merged({"ray": {"enabled": True}, "global": shared}, nested))
    owner = named(objects, kind, name)
    pod = owner["spec"]["template"]
    assert owner["metadata"]["labels"]["cost"] == "42"
    assert pod["metadata"]["annotations"]["example.com/a"] == "b"
    assert pod["metadata"]["labels"].items() >= {"team": "search", "cost": "42"}.items()
    spec = pod["spec"]
    for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec[key] == added[key]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (1000, True)
    assert spec["imagePullSecrets"] == [{"name": "login"}]
    assert {"name": "more", "emptyDir": {}} in spec["volumes"]
    container = spec["containers"][0]
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
    assert {"EXTRA", "SHARED"} <= {one["name"] for one in container["env"]}


def test_images_by_registry_tag_and_digest(chart: Chart) -> None:
    images = {
        "gateway": {"tag": "1.2"},
        "controller": {"digest": "sha256:" + "a" * 64},
        "mlflow": {"repository": "own/mlflow"},
    }
    objects = chart({"global": {"imageRegistry": "registry.example.com/llm/"}, "images": images})

    def image(name: str) -> str:
        return str(named(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"])

    assert image("demo-gateway") == "registry.example.com/llm/understudy-gateway:1.2"
    assert image("demo-controller") == "registry.example.com/llm/understudy-controller@sha256:" + "a" * 64
    assert image("demo-mlflow") == "registry.example.com/llm/own/mlflow:0.1.0"


# --- what is refused


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"gateway": {"replica": 3}}, "replica"),
        ({"gateway": {"replicas": "three"}}, "replicas"),
        ({"controller": {"replicas": 3}}, "replicas"),
        ({"images": {"gateway": {"digest": "latest"}}}, "digest"),
        ({"global": {"imagePullPolicy": "Sometimes"}}, "imagePullPolicy"),
        ({"gateway": {"apiKeys": {"additional": [{"name": "shop", "sha256": "secret"}]}}}, "sha256"),
        ({"gateway": {"settings": {"poll_seconds": 1}}}, "poll_seconds"),
        ({"mlflow": {"uri": "mlflow:5000"}}, "uri"),
        ({"tracing": {"endpoint": "collector:4317"}}, "endpoint"),
        ({"tracing": {"ratio": 2}}, "ratio"),
        ({"models": {"kind": "nfs"}}, "kind"),
        (
            {"gateway": {"autoscaling": {"enabled": True}, "keda": {"enabled": True, "triggers": [{"type": "cpu"}]}}},
            "choose one",
        ),
        ({"gateway": {"keda": {"enabled": True}}}, "gateway.keda.triggers"),
        ({"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}, "maxReplicas"),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "parentRefs"),
        ({"postgresql": {"enabled": False}}, "store.existingSecret"),
        ({"postgresql": {"enabled": False}, "store": {"existingSecret": "own"}}, "mlflow.backend.kind"),
        ({"mlflow": {"enabled": False}}, "mlflow.uri"),
        ({"mlflow": {"backend": {"kind": "existingSecret"}}}, "mlflow.backend.existingSecret"),
        ({"ray": {"enabled": True, "existing": {"dashboardUrl": "http://ray:8265"}}}, "ray.existing.dashboardUrl"),
        ({"ray": {"existing": {"dashboardUrl": "http://ray:8265"}}}, "ray.existing.proxyUrl"),
        ({"ray": {"enabled": True, "worker": {"gpus": 1}}}, "nvidia.com/gpu"),
    ],
)
def test_wrong_values_are_refused_by_name(chart: Chart, values: dict[str, Any], word: str) -> None:
    with pytest.raises(Exception, match=re.escape(word)):
        chart(values)

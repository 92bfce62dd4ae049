"""The chart's templates: who may reach what and do what, and the secrets that are generated for it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.charts.conftest import Chart
from tests.fakes.rendered_chart import EVERYTHING, Objects, env, has, merged, named


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

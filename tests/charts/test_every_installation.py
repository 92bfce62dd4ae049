"""The chart's templates: what holds for the defaults, the value files and everything switched on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.charts.conftest import CHART, Chart
from tests.fakes.rendered_chart import EVERYTHING, HA, Objects, containers, merged, named, pods

OWN = {"own-store", "own-mlflow", "own-tls"}


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


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


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

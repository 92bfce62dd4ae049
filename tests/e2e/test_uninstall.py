"""`helm uninstall` with a service that serves: drained first, nothing hangs, nothing is left in the namespace."""

from __future__ import annotations

import pytest

from tests.e2e.installation import RELEASE, SERVICE, Platform
from tests.e2e.kube import run, until

pytestmark = pytest.mark.e2e
# What the cluster itself puts into every namespace, and what goes by itself.
NOT_OURS = ("configmap/kube-root-ca.crt", "serviceaccount/default", "event/", "event.events.k8s.io/")


def _left(platform: Platform) -> list[str]:
    kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    kinds = [kind for kind in kinds if not kind.endswith(".metrics.k8s.io")]
    names = platform.namespace.kubectl("get", ",".join(kinds), "--output=name", "--ignore-not-found").split()
    return [name for name in names if not name.startswith(NOT_OURS)]


def test_nothing_hangs_and_nothing_is_left(serving: Platform) -> None:
    assert f"llmservice.understudy.dev/{SERVICE}" in _left(serving)
    serving.namespace.helm("uninstall", RELEASE, "--wait", "--timeout=8m", timeout=540)
    until("nothing is left", lambda: not _left(serving), 120)

"""One installation for all end-to-end tests of a run, in the order in which a person would meet what they test.

Environment: KUBECONFIG names the cluster. E2E_BUILD_IMAGE: a command that builds an image and hands it to the cluster, called as
`$E2E_BUILD_IMAGE NAME --target TARGET FOLDER` (default: docker, and kind). E2E_IMAGES=there: the cluster has them already.
E2E_NAMESPACE: use the installation there, or make one, and leave it; else a new namespace comes and goes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator

import pytest
from mlflow.exceptions import MlflowException

from tests.e2e.installation import (
    DEFINITION,
    RELEASE,
    Platform,
    build_images,
    delete,
    has_definition,
    manifest,
    why_no_kuberay,
)
from tests.e2e.kube import CommandFailed, Namespace, run

ORDER = (
    "test_operator", "test_install", "test_rollout", "test_upgrade", "test_alias_conflict", "test_faults", "test_gpu", "test_uninstall",
    "test_kuberay", "test_engine_faults", "test_documentation",
)  # fmt: skip
_platforms: list[Platform] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of ORDER: an engine takes a minute to start, so tests go on where others ended; uninstalling comes last,
    but for what has an installation of its own."""
    own = [item for item in items if item.path.parent.name == "e2e"]
    own.sort(key=lambda item: ORDER.index(item.path.stem))
    others = [item for item in items if item.path.parent.name != "e2e"]
    items[:] = others + own


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is reported with what a person would look at first."""
    report = yield
    if report.failed and _platforms and item.path.parent.name == "e2e":
        report.sections.append(("cluster", _platforms[-1].namespace.diagnosis()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests recorded."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.user_properties:
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {figures} ({report.duration:.0f} s)")


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """The chart with values-cpu.yaml: every pod ready, no service yet (or what E2E_NAMESPACE has)."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG names no cluster")
    given = os.environ.get("E2E_NAMESPACE")
    namespace = Namespace(given or f"understudy-e2e-{secrets.token_hex(3)}")
    platform = Platform(namespace)
    _platforms.append(platform)
    if given and RELEASE in run("helm", "list", "--short", "--namespace", given).split():
        yield platform
        return
    build_images()
    own_definition = not has_definition()
    try:
        platform.install()
        yield platform
    except CommandFailed as failure:
        pytest.exit(f"nothing to test: {failure}", returncode=1)
    finally:
        if not given:
            _clean_up(namespace, own_definition)


def _clean_up(namespace: Namespace, own_definition: bool) -> None:
    delete(namespace)
    if own_definition:
        run("kubectl", "delete", "customresourcedefinition", DEFINITION, "--ignore-not-found")


@pytest.fixture(scope="module")
def kuberay() -> Iterator[Platform]:
    """The chart for engines that KubeRay runs, in a namespace of its own; no service yet."""
    namespace = Namespace(f"understudy-e2e-{secrets.token_hex(3)}")
    platform = Platform(namespace)
    own_definition = not has_definition()
    try:
        run("kubectl", "create", "namespace", namespace.name)
        if reason := why_no_kuberay(namespace):
            pytest.skip(reason)
        build_images()
        _platforms.append(platform)
        platform.install("ray.enabled=false", "controller.kuberay.enabled=true")
        yield platform
    finally:
        _clean_up(namespace, own_definition)


@pytest.fixture(scope="session")
def serving(platform: Platform) -> Platform:
    """The platform with the service `assistant`, whose champion answers."""
    if "champion" not in _aliases(platform):
        (first,) = platform.register("v1")
        platform.set_alias("champion", first)
    platform.namespace.apply(manifest())
    platform.wait_for("condition=Ready", 600)
    return platform


def _aliases(platform: Platform) -> dict[str, str]:
    """None where the registry does not know the model yet."""
    try:
        return platform.aliases()
    except MlflowException:
        return {}

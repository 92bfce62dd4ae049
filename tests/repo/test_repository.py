"""What must hold for the repository as a whole: it works on any machine, and says why each dependency is there."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module", autouse=True)
def a_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")


def test_no_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    folders = r"(^|[^\w.-])/(work|root|farm)" + "/"
    options = "--(extra-)?index-url|--find" + "-links"
    hosts = r"(pypi|pythonhosted)\.org"
    place = re.compile("|".join((folders, options, hosts)))
    found = []
    for path in tracked():
        if path.suffix in {".png", ".svg"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if place.search(line.replace("--no-emit-index-url", "")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_every_direct_dependency_is_explained() -> None:
    log = (ROOT / "docs/decisions.md").read_text()
    direct = set()
    for path in tracked("requirements/*.in"):
        for line in path.read_text().splitlines():
            if match := re.match(r"^([A-Za-z0-9-]+)", line):
                direct.add(match[1].lower())
    unexplained = {name for name in direct if not name.startswith(("types-", "uv")) and name not in log}
    assert unexplained == set()


def test_requirements_are_pinned_with_hashes() -> None:
    for path in tracked("requirements/*.txt"):
        if path.name == "engine-overrides.txt":
            continue
        for block in re.split(r"\n(?=[A-Za-z0-9])", path.read_text()):
            if block.startswith("#"):
                continue
            assert "==" in block.splitlines()[0], f"{path.name}: {block.splitlines()[0]}"
            assert "--hash=sha256:" in block, f"{path.name}: {block.splitlines()[0]}"


def test_the_makefile_has_the_promised_targets() -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    promised = ("setup", "check", "test", "test-engine", "demo", "demo-serve", "bench", "generate", "verify", "clean")
    assert [target for target in promised if f"make {target} " not in help_text] == []


def test_continuous_integration_runs_what_the_readme_names() -> None:
    script = (ROOT / ".ci/run").read_text()
    positions = [script.index(f"; {command}\n") for command in ("make test", "make test-engine", "make demo")]
    assert positions == sorted(positions)
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for path in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_package_holds_all_import_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == {"services", "pipelines"}
    assert project["project"]["scripts"].keys() == {"understudy", "kubectl-understudy"}


def test_the_demos_settings_are_one_valid_file() -> None:
    kinds = [document["kind"] for document in yaml.safe_load_all((ROOT / "demo/demo.yaml").read_text())]
    assert kinds == ["LocalPlatform", "LLMService", "DemoStory"]

"""The commands that run the platform and look after it: `demo` to `version`. Registered by `main`; what they say is made elsewhere.

Imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import CliError, NotFound, UsageFault
from services.cli.options import Output, StoreUrl, show

DEMO = Path("demo/demo.yaml")


def demo(
    config: Annotated[Path, typer.Option(help="The story and its settings.")] = DEMO,
    models: Annotated[Path, typer.Option(help="Where the demo's models are kept once they are trained.")] = Path(
        ".cache/models"
    ),
    serve: Annotated[bool, typer.Option("--serve", help="Leave the platform running at the end.")] = False,
) -> None:
    """Five rollouts on real engines on this machine: promoted, or rolled back for a reason.

    Example: understudy demo --serve
    """
    if not _in_checkout() or (config == DEMO and not config.is_file()):
        raise NotFound("the demo needs a checkout of the repository: run `understudy demo` in its top folder")
    with _local_errors(config):
        from demo.story import run as run_demo

        code = run_demo(config, models, serve)
    raise typer.Exit(code)


def serve(config: Annotated[Path, typer.Option(help="The services and where they run, as YAML.")]) -> None:
    """Run the platform on this machine: gateway, controller, engines.

    Example: understudy serve --config demo/demo.yaml
    """
    with _local_errors(config):
        from services.cli.local import serve as serve_locally

        code = serve_locally(config)
    raise typer.Exit(code)


def migrate(store: StoreUrl = None) -> None:
    """Bring the store's schema to this version; harmless when it is there already.

    Example: understudy migrate --store sqlite:///understudy.db
    """
    from services.cli.connection import store_errors, store_url, without_password

    url = store_url(store)
    with store_errors(url):
        from services.store import migrate as migrate_store

        migrate_store(url)
    typer.echo(f"store {without_password(url)} has this version's schema")


def erase(
    user: Annotated[str, typer.Option("--user", "-u", help="The user, as clients name them.")],
    tenant: Annotated[str, typer.Option(help="The tenant of the clients' API key.")] = "default",
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Holds the key that hides users (`unit_key`); `-`: standard input; default: beside a local store.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreUrl = None,
) -> None:
    """Delete everything that the store holds of one user, in all services. It cannot be undone.

    Example: understudy erase --user ada
    """
    from services.cli.connection import opened, store_url
    from services.cli.erasure import STDIN, unit_key
    from services.common.identifiers import unit_of

    if key_file == STDIN and not yes:
        raise UsageFault("--key-file - leaves no way to ask: say --yes")
    url = store_url(store)
    unit = unit_of(unit_key(key_file, url), tenant, user)
    who = f"user {user!r} of tenant {tenant!r}"
    with opened(url) as opened_store:
        if not yes:
            typer.confirm(f"Delete everything that is stored of {who}?", abort=True)
        rows = opened_store.erase_user(unit)
    typer.echo(f"{rows} rows of {who} deleted" if rows else f"nothing is stored of {who}")


def doctor(
    environment: Annotated[Path, typer.Option(help="The engine's virtual environment.")] = Path(".venv-engine"),
    state: Annotated[Path, typer.Option(help="Folder whose disk the platform will fill.")] = Path("demo/run"),
    machine_only: Annotated[
        bool, typer.Option("--machine", help="Before the environment is made: the machine alone.")
    ] = False,
    output: Output = "table",
) -> None:
    """Whether this machine can run an engine; what is missing, and the command that gets it.

    Example: understudy doctor
    """
    from dataclasses import asdict

    from services.cli import tables
    from services.serving.preflight import examine

    findings = examine(None if machine_only else environment, state)
    show(output, {"findings": [asdict(finding) for finding in findings]}, tables.doctor)
    if missing := [finding.check for finding in findings if finding.required and not finding.ok]:
        raise CliError(f"no engine can run here yet: see {', '.join(missing)} above")


def version() -> None:
    """The version of this program."""
    from importlib import metadata

    try:
        typer.echo(f"understudy {metadata.version('understudy')}")
    except metadata.PackageNotFoundError as error:
        raise CliError("understudy is not installed here, only its sources are; run `make setup`") from error


def _in_checkout() -> bool:
    """Whether the demo is there: it is no part of an installed package."""
    from importlib.util import find_spec

    try:
        return find_spec("demo.story") is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _local_errors(config: Path) -> Iterator[None]:
    """Raises what keeps the laptop's platform from running as `CliError`s."""
    if not config.is_file():
        raise NotFound(f"no file {config}; name one with --config (the demo's is demo/demo.yaml in the repository)")
    from services.cli.processes import LocalError
    from services.common.manifest import InvalidManifest
    from services.serving.errors import ServingError

    try:
        yield
    except (LocalError, InvalidManifest, ServingError) as error:
        raise CliError(" ".join(str(error).split())) from error

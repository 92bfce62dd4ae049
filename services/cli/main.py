"""Entry point of `understudy` and `kubectl-understudy`: options, help, exit codes. Each command asks another module for its answer and
prints it.

Imports nothing slow: SQLAlchemy, rich tables, pydantic and the laptop's platform come in with the command that needs them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli.errors import CliError, NotFound

if TYPE_CHECKING:
    from services.store.rows import Verb

ABOUT = """Watch and steer model rollouts: rehearsed on mirrored traffic, brought in a few users at a time, decided on evidence.

A rollout begins when the alias `challenger` is set on a version in the registry; these commands show where it stands
and let a person decide.
"""

EXAMPLES = """[bold]Examples[/bold]

understudy status                                    what serves, what is under way, what it waits for

understudy explain assistant                         why the rollout stands where it stands, with the numbers

understudy abort assistant --reason "wrong prices"   back to stable, now

understudy rollouts -o json                          every rollout, for a program

understudy demo                                      the whole story on this machine, in minutes

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 no such service or rollout, 4 store unreachable.
"""

app = typer.Typer(
    name="understudy",
    help=ABOUT,
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[
    Literal["table", "json"], typer.Option("--output", "-o", help="`table` for people, `json` for programs.")
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="UNDERSTUDY_STORE_URL",
        metavar="URL",
        help="The platform's store, e.g. `postgresql+psycopg://host/understudy`; default: the demo's, where there is one.",
        show_default=False,
    ),
]
ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service, e.g. `assistant`.")]
ServiceOption = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="One service; all of them without it.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why: kept in the audit trail.")]
Wait = Annotated[
    float, typer.Option("--wait", "-w", min=0, metavar="SECONDS", help="Time to wait for the controller's answer.")
]

WATCH, STEER, RUN = "Look", "Decide", "Run"


@app.command(rich_help_panel=WATCH)
def status(service: ServiceOption = None, output: Output = "table", store: StoreUrl = None) -> None:
    """What serves, what is under way, and what it waits for.

    Example: understudy status assistant
    """
    from services.cli import tables, views
    from services.cli.connection import opened, store_url

    with opened(store_url(store)) as connection:
        document = views.status(connection, service)
    _show(output, document, tables.status)


@app.command(rich_help_panel=WATCH)
def rollouts(
    service: ServiceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    output: Output = "table",
    store: StoreUrl = None,
) -> None:
    """Rollouts past and present, newest first.

    Example: understudy rollouts assistant --limit 5
    """
    from services.cli import tables, views
    from services.cli.connection import opened, store_url

    with opened(store_url(store)) as connection:
        document = views.rollouts(connection, service, limit)
    _show(output, document, tables.rollouts)


@app.command(rich_help_panel=WATCH)
def explain(
    what: Annotated[
        str, typer.Argument(metavar="SERVICE|ROLLOUT", help="A service (its newest rollout) or a rollout's id.")
    ],
    output: Output = "table",
    store: StoreUrl = None,
) -> None:
    """Why a rollout stands where it stands: sentences, numbers, audit trail.

    Examples: understudy explain assistant; understudy explain 0197a3c2-7f31-7c5e-9b1d-2f6f0d4c8a11
    """
    from services.cli import tables, views
    from services.cli.connection import opened, store_url

    with opened(store_url(store)) as connection:
        document = views.explain(connection, what)
    _show(output, document, tables.explain)


@app.command(rich_help_panel=STEER)
def abort(
    service: ServiceArgument, reason: Reason, wait: Wait = 10.0, output: Output = "table", store: StoreUrl = None
) -> None:
    """End the rollout: everyone back to stable at once.

    Example: understudy abort assistant --reason "complaints about prices"
    """
    _give("abort", service, reason, wait, output, store)


@app.command(rich_help_panel=STEER)
def promote(
    service: ServiceArgument, reason: Reason, wait: Wait = 10.0, output: Output = "table", store: StoreUrl = None
) -> None:
    """Make the candidate stable now, whatever the evidence says.

    Example: understudy promote assistant --reason "hotfix, reviewed by two"
    """
    _give("promote", service, reason, wait, output, store)


@app.command(rich_help_panel=STEER)
def pause(
    service: ServiceArgument, reason: Reason = "", wait: Wait = 10.0, output: Output = "table", store: StoreUrl = None
) -> None:
    """Keep the rollout where it is; harm still aborts it.

    Example: understudy pause assistant --reason "demo for customers today"
    """
    _give("pause", service, reason, wait, output, store)


@app.command(rich_help_panel=STEER)
def resume(
    service: ServiceArgument, reason: Reason = "", wait: Wait = 10.0, output: Output = "table", store: StoreUrl = None
) -> None:
    """Let a paused rollout go on.

    Example: understudy resume assistant
    """
    _give("resume", service, reason, wait, output, store)


@app.command(rich_help_panel=STEER)
def approve(
    service: ServiceArgument, reason: Reason = "", wait: Wait = 10.0, output: Output = "table", store: StoreUrl = None
) -> None:
    """Approve a step that waits for a person.

    Example: understudy approve assistant --reason "answers read, fine"
    """
    _give("approve", service, reason, wait, output, store)


@app.command(rich_help_panel=RUN)
def demo(
    config: Annotated[Path, typer.Option(help="The story and its settings.")] = Path("demo/demo.yaml"),
    models: Annotated[Path, typer.Option(help="Where the demo's models are kept once they are trained.")] = Path(
        ".cache/models"
    ),
    serve: Annotated[bool, typer.Option("--serve", help="Leave the platform running at the end.")] = False,
) -> None:
    """Five rollouts on real engines on this machine: promoted, or rolled back for a reason.

    Example: understudy demo --serve
    """
    with _local_errors(config):
        from demo.story import run as run_demo

        code = run_demo(config, models, serve)
    raise typer.Exit(code)


@app.command(rich_help_panel=RUN)
def serve(config: Annotated[Path, typer.Option(help="The services and where they run, as YAML.")]) -> None:
    """Run the platform on this machine: gateway, controller, engines.

    Example: understudy serve --config demo/demo.yaml
    """
    with _local_errors(config):
        from services.cli.local import serve as serve_locally

        code = serve_locally(config)
    raise typer.Exit(code)


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
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
    _show(output, {"findings": [asdict(finding) for finding in findings]}, tables.doctor)
    if missing := [finding.check for finding in findings if finding.required and not finding.ok]:
        raise CliError(f"no engine can run here yet: see {', '.join(missing)} above")


@app.command(rich_help_panel=RUN)
def version() -> None:
    """The version of this program."""
    from importlib import metadata

    try:
        typer.echo(f"understudy {metadata.version('understudy')}")
    except metadata.PackageNotFoundError as error:
        raise CliError("understudy is not installed here, only its sources are; run `make setup`") from error


def _give(verb: Verb, service: str, reason: str, wait: float, output: str, store: str | None) -> None:
    import getpass

    from services.cli.commands import give
    from services.cli.connection import opened, store_url

    with opened(store_url(store)) as connection:
        given = give(connection, service, verb, actor=getpass.getuser(), reason=reason, wait=wait, clock=time)
    if output == "json":
        _print_json(
            {"id": given.id, "service": service, "rollout": given.rollout, "verb": verb, "answer": given.answer}
        )
    elif given.answer is not None and not given.refused:
        typer.echo(f"{service}: {given.answer}")
    elif wait == 0:
        typer.echo(f"{service}: {verb} is recorded; the controller acts at its next look")
    if given.refused:
        raise CliError(f"{verb} {service} was {given.answer}")
    if given.answer is None and wait > 0:
        raise CliError(
            f"the controller has not answered within {wait:g} s; the order is recorded and holds once it is up "
            f"(see `understudy status {service}`)"
        )


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


def _show(output: str, document: Any, table: Any) -> None:
    if output == "json":
        _print_json(document)
    else:
        table(document)


def _print_json(document: Any) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def run(arguments: Sequence[str], program: str = "understudy") -> int:
    """Runs one command line; prints an expected failure as one line on stderr and returns the exit code."""
    from typer.exceptions import TyperException

    try:
        code = app(list(arguments) or ["--help"], prog_name=program, standalone_mode=False)
    except CliError as error:
        typer.echo(f"{program}: {error}", err=True)
        return error.exit_code
    except TyperException as error:
        context = getattr(error, "ctx", None)
        place = program if context is None else context.command_path
        typer.echo(f"{program}: {' '.join(error.format_message().split())} (see `{place} --help`)", err=True)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `understudy rollouts | head`
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0


def main() -> None:
    """What the console scripts call; `kubectl` finds the second one as its plug-in."""
    program = "kubectl understudy" if Path(sys.argv[0]).name.startswith("kubectl-") else "understudy"
    sys.exit(run(sys.argv[1:], program))

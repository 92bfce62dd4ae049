"""Entry point of `understudy` and `kubectl-understudy`: options, help, exit codes. Each command asks another module for its answer and
prints it.

Imports nothing slow: SQLAlchemy, rich tables, pydantic and the laptop's platform come in with the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.cli import costs, what_if
from services.cli.errors import CliError, NotFound, UsageFault
from services.cli.options import (
    PLUGIN,
    Output,
    Reason,
    ServiceArgument,
    ServiceOption,
    StoreUrl,
    Wait,
    Where,
    anywhere,
    print_json,
    show,
)

if TYPE_CHECKING:
    from services.cli.commands import Given
    from services.store.rows import Verb

ABOUT = """Watch and steer model rollouts: rehearsed on mirrored traffic, brought in a few users at a time, decided on evidence.

A rollout begins when the alias `challenger` is set on a version in the registry; these commands show where it stands
and let a person decide.
"""

EXAMPLES = """[bold]Examples[/bold]

understudy status                                    what serves, what is under way, what it waits for

understudy explain assistant                         why the rollout stands where it stands, with the numbers

understudy plan assistant --users-per-day 5000       how long a rollout will take, and what it would see

understudy abort assistant --reason "wrong prices"   back to stable, now

understudy rollouts -o json                          every rollout, for a program

kubectl understudy status -A                         the same over the resources of a cluster

understudy demo                                      the whole story on this machine, in minutes

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 no such service or rollout, 4 store or cluster unreachable.
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

WATCH, STEER, RUN = "Look", "Decide", "Run"
DEMO = Path("demo/demo.yaml")


@app.command(rich_help_panel=WATCH)
@anywhere
def status(where: Where, service: ServiceOption = None, output: Output = "table") -> None:
    """What serves, what is under way, and what it waits for.

    Example: understudy status assistant
    """
    from services.cli import tables
    from services.cli.sources import opened_source

    with opened_source(where) as source:
        document = source.status(service)
    show(output, document, tables.status)


@app.command(rich_help_panel=WATCH)
@anywhere
def rollouts(
    where: Where,
    service: ServiceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 50,
    output: Output = "table",
) -> None:
    """Rollouts past and present, newest first.

    Example: understudy rollouts assistant --limit 5
    """
    from services.cli import tables
    from services.cli.sources import opened_source

    with opened_source(where) as source:
        document = source.rollouts(service, limit)
    show(output, document, tables.rollouts)


@app.command(rich_help_panel=WATCH)
@anywhere
def explain(
    where: Where,
    what: Annotated[
        str, typer.Argument(metavar="SERVICE|ROLLOUT", help="A service (its newest rollout) or a rollout's id.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the evidence into this .png, .svg or .pdf too.", show_default=False),
    ] = None,
    output: Output = "table",
) -> None:
    """Why a rollout stands where it stands: sentences, numbers, how the error budget was spent, audit trail.

    With --plot also as a picture: each metric's effect with its bounds against the margin, and its e-values against what they must reach,
    over time. That needs matplotlib (`pip install matplotlib`) and the store.

    Examples: understudy explain assistant --plot evidence.png; understudy explain 0197a3c2-7f31-7c5e-9b1d-2f6f0d4c8a11
    """
    from services.cli import tables
    from services.cli.sources import opened_source

    with opened_source(where) as source:
        document = source.explain(what)
        if plot is not None:
            source.draw(document, plot)
    show(output, document, tables.explain)


@app.command(rich_help_panel=WATCH)
@anywhere
def experiment(
    where: Where,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="An experiment, as NAME or SERVICE:NAME; all of them without it."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the result as a page too.", show_default=False)
    ] = None,
    output: Output = "table",
) -> None:
    """What A/B experiments show: users, differences and their bounds, and when there would be a result.

    Example: understudy experiment assistant:tone --html tone.html
    """
    if where.in_cluster:
        raise UsageFault(
            "results of experiments lie in the platform's store: name it with --store; what is shown so far stands in the condition "
            "Experiments of the resource (kubectl describe)"
        )
    if html is not None and name is None:
        raise UsageFault("--html makes a page of one experiment: name it")
    from services.cli import connection, experiments

    url = connection.store_url(where.store)
    with connection.opened(url) as store:
        document = experiments.experiments(store) if name is None else experiments.experiment(store, name)
    if html is not None:
        from services.cli.experiment_page import page

        try:
            html.write_text(page(document), encoding="utf-8")
        except OSError as error:
            raise CliError(f"{html} cannot be written: {error.strerror}") from error
    show(output, document, experiments.listing if name is None else experiments.result)


@app.command(rich_help_panel=WATCH)
@anywhere
def trace(
    where: Where,
    service: ServiceArgument,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="Give up after so long; default: never."),
    ] = None,
) -> None:
    """Follow the newest rollout until it has ended: exit code 0 when the candidate was promoted, 1 otherwise.

    Example: understudy trace assistant --timeout 3600
    """
    import time

    from services.cli.sources import opened_source
    from services.cli.trace import follow

    def tell(line: str) -> None:
        typer.echo(f"[{time.strftime('%H:%M:%S')}] {line}")
        sys.stdout.flush()

    with opened_source(where) as source:
        promoted = follow(lambda rollout: source.progress(service, rollout), tell, time, timeout)
    raise typer.Exit(0 if promoted else 1)


@app.command(rich_help_panel=WATCH)
@anywhere
def logs(
    where: Where,
    service: ServiceArgument,
    component: Annotated[
        Literal["engine", "gateway", "controller"], typer.Option("--component", "-c", help="Whose logs.")
    ] = "engine",
    arm: Annotated[
        Literal["candidate", "stable"] | None,
        typer.Option("--arm", help="The engine of one arm alone.", show_default=False),
    ] = None,
    lines: Annotated[int, typer.Option("--tail", min=1, max=100_000, help="Last lines of each container.")] = 100,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the containers' last run.")] = False,
) -> None:
    """What the pods of a service say; in a cluster only.

    Example: kubectl understudy logs assistant --arm candidate
    """
    if not where.in_cluster:
        raise UsageFault(
            "logs are read from a cluster's pods: name it with --context or --namespace; elsewhere see the folder logs"
        )
    from services.cli.cluster import opened_cluster

    with opened_cluster(where) as cluster:
        for place, line in cluster.logs(service, component, arm, lines, previous):
            typer.echo(f"[{place}] {line}")


app.command(rich_help_panel=WATCH)(what_if.plan)
app.command(rich_help_panel=WATCH)(what_if.replay)
app.command(rich_help_panel=WATCH)(costs.costs)


@app.command(rich_help_panel=STEER)
@anywhere
def abort(where: Where, service: ServiceArgument, reason: Reason, wait: Wait = 30.0, output: Output = "table") -> None:
    """End the rollout: everyone back to stable at once.

    Example: understudy abort assistant --reason "complaints about prices"
    """
    _give(where, "abort", service, reason, wait, output)


@app.command(rich_help_panel=STEER)
@anywhere
def promote(
    where: Where, service: ServiceArgument, reason: Reason, wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Make the candidate stable now, whatever the evidence says.

    Example: understudy promote assistant --reason "hotfix, reviewed by two"
    """
    _give(where, "promote", service, reason, wait, output)


@app.command(rich_help_panel=STEER)
@anywhere
def pause(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Keep the rollout where it is; harm still aborts it.

    Example: understudy pause assistant --reason "demo for customers today"
    """
    _give(where, "pause", service, reason, wait, output)


@app.command(rich_help_panel=STEER)
@anywhere
def resume(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Let a paused rollout go on.

    Example: understudy resume assistant
    """
    _give(where, "resume", service, reason, wait, output)


@app.command(rich_help_panel=STEER)
@anywhere
def approve(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Approve a step that waits for a person.

    Example: understudy approve assistant --reason "answers read, fine"
    """
    _give(where, "approve", service, reason, wait, output)


@app.command(rich_help_panel=STEER)
@anywhere
def pin(
    where: Where,
    service: ServiceArgument,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Have this version run beside stable.", show_default=False)
    ] = None,
    remove: Annotated[
        int | None, typer.Option("--remove", min=1, help="End the one of this version.", show_default=False)
    ] = None,
    reason: Reason = "",
    wait: Wait = 30.0,
    output: Output = "table",
) -> None:
    """Have one more version run for tests: requests name it as the model `SERVICE@vN`, with a key that has the scope `pin`.

    Example: kubectl understudy pin assistant --version 3 --reason "to read its answers"
    """
    number = version if remove is None else remove
    if number is None or None not in (version, remove):
        raise UsageFault("name either --version or --remove")
    import getpass

    from services.cli.sources import opened_source

    with opened_source(where) as source:
        given = source.pin(
            service, str(number), remove=remove is not None, actor=getpass.getuser(), reason=reason, wait=wait
        )
    _show_given(given, wait, output)


@app.command(rich_help_panel=RUN)
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
    show(output, {"findings": [asdict(finding) for finding in findings]}, tables.doctor)
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


def _give(where: Where, verb: Verb, service: str, reason: str, wait: float, output: str) -> None:
    import getpass

    from services.cli.sources import opened_source

    with opened_source(where) as source:
        given = source.give(service, verb, actor=getpass.getuser(), reason=reason, wait=wait)
    _show_given(given, wait, output)


def _show_given(given: Given, wait: float, output: str) -> None:
    service, verb = given.service, given.verb
    if output == "json":
        print_json({"id": given.id, "service": service, "rollout": given.rollout, "verb": verb, "answer": given.answer})
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
    program = PLUGIN if Path(sys.argv[0]).name.startswith("kubectl-") else "understudy"
    sys.exit(run(sys.argv[1:], program))

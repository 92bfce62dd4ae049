"""Entry point of `understudy` and `kubectl-understudy`: options, help, exit codes. Each command asks another module for its answer and
prints it.

Imports nothing slow: SQLAlchemy, rich tables, pydantic and the laptop's platform come in with the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from services.cli import costs, drift, running, steering, what_if
from services.cli.errors import CliError, UsageFault
from services.cli.options import PLUGIN, Output, ServiceArgument, ServiceOption, Where, anywhere, show

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


for command in (what_if.plan, what_if.replay, drift.drift, costs.costs):
    app.command(rich_help_panel=WATCH)(command)
for command in (steering.abort, steering.promote, steering.pause, steering.resume, steering.approve, steering.pin):
    app.command(rich_help_panel=STEER)(command)
for command in (running.demo, running.serve, running.migrate, running.erase, running.doctor, running.version):
    app.command(rich_help_panel=RUN)(command)


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

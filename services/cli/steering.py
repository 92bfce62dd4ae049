"""The commands with which a person decides: `abort` to `pin`. Registered by `main`; the controller obeys them, and answers.

Imports nothing slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, UsageFault
from services.cli.options import Output, Reason, ServiceArgument, Wait, Where, anywhere, print_json

if TYPE_CHECKING:
    from services.cli.commands import Given
    from services.store.rows import Verb


@anywhere
def abort(where: Where, service: ServiceArgument, reason: Reason, wait: Wait = 30.0, output: Output = "table") -> None:
    """End the rollout: everyone back to stable at once.

    Example: understudy abort assistant --reason "complaints about prices"
    """
    _give(where, "abort", service, reason, wait, output)


@anywhere
def promote(
    where: Where, service: ServiceArgument, reason: Reason, wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Make the candidate stable now, whatever the evidence says.

    Example: understudy promote assistant --reason "hotfix, reviewed by two"
    """
    _give(where, "promote", service, reason, wait, output)


@anywhere
def pause(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Keep the rollout where it is; harm still aborts it.

    Example: understudy pause assistant --reason "demo for customers today"
    """
    _give(where, "pause", service, reason, wait, output)


@anywhere
def resume(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Let a paused rollout go on.

    Example: understudy resume assistant
    """
    _give(where, "resume", service, reason, wait, output)


@anywhere
def approve(
    where: Where, service: ServiceArgument, reason: Reason = "", wait: Wait = 30.0, output: Output = "table"
) -> None:
    """Approve a step that waits for a person.

    Example: understudy approve assistant --reason "answers read, fine"
    """
    _give(where, "approve", service, reason, wait, output)


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

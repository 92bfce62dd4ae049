"""Options that commands share, and the decorator that gives a command those that say where to look. Used by `main`.

Imports nothing slow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, Final, Literal, ParamSpec

import typer

from services.cli.errors import UsageFault

PLUGIN: Final = "kubectl understudy"
"""The program's name when kubectl called it."""
CLUSTER_PANEL: Final = "In a cluster"

Output = Annotated[
    Literal["table", "json"], typer.Option("--output", "-o", help="`table` for people, `json` for programs.")
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=["UNDERSTUDY_STORE_URL", "UNDERSTUDY_CONTROLLER_STORE_URL"],
        metavar="URL",
        help="The platform's store, e.g. `postgresql+psycopg://host/understudy`; default: the demo's, where there is one.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", help="The resource's namespace; default: the context's.", rich_help_panel=CLUSTER_PANEL
    ),
]
Everywhere = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="All namespaces.", rich_help_panel=CLUSTER_PANEL)
]
Context = Annotated[
    str | None, typer.Option("--context", help="A context of the kubeconfig.", rich_help_panel=CLUSTER_PANEL)
]
Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", metavar="FILE", help="Default: as kubectl.", rich_help_panel=CLUSTER_PANEL),
]
ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service, e.g. `assistant`.")]
ServiceOption = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="One service; all of them without it.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why: kept in the audit trail.")]
Wait = Annotated[
    float, typer.Option("--wait", "-w", min=0, metavar="SECONDS", help="Time to wait for the controller's answer.")
]

Parameters = ParamSpec("Parameters")


def show(output: str, document: Any, table: Callable[[Any], None]) -> None:
    """Prints a document for programs, or has it laid out for people."""
    if output == "json":
        print_json(document)
    else:
        table(document)


def print_json(document: Any) -> None:
    """Prints a document for programs."""
    import json

    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class Where:
    """What a person said of where to look. `store` or the cluster, never both; `everywhere`: all namespaces."""

    in_cluster: bool = False
    store: str | None = None
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    everywhere: bool = False

    @classmethod
    def of(cls, *, plugin: bool, store: str | None, store_typed: bool, **cluster: Any) -> Where:
        """`plugin`: kubectl called. `store_typed`: the store's URL was typed, and not only lies in the environment.

        Raises:
            UsageFault: both a store and a cluster were asked for.
        """
        asked = any(cluster.values())
        if asked and store_typed:
            raise UsageFault("--store and the options of a cluster exclude each other: give one or the other")
        in_cluster = asked or (plugin and not store_typed)
        return cls(in_cluster=in_cluster, store=None if in_cluster else store, **cluster)


def anywhere(command: Callable[Concatenate[Where, Parameters], None]) -> Callable[..., None]:
    """Gives a command the options of store and cluster; what they say together arrives as its first argument."""

    def run(
        caller: typer.Context,
        store: StoreUrl = None,
        namespace: Namespace = None,
        everywhere: Everywhere = False,
        context: Context = None,
        kubeconfig: Kubeconfig = None,
        **own: Any,
    ) -> None:
        typed = caller.get_parameter_source("store")
        where = Where.of(
            plugin=caller.find_root().info_name == PLUGIN,
            store=store,
            store_typed=typed is not None and typed.name == "COMMANDLINE",
            namespace=namespace,
            everywhere=everywhere,
            context=context,
            kubeconfig=kubeconfig,
        )
        command(where, **own)  # type: ignore[call-arg]

    _where, *theirs = inspect.signature(command, eval_str=True).parameters.values()
    ours = [one for one in inspect.signature(run, eval_str=True).parameters.values() if one.kind is not one.VAR_KEYWORD]
    everything = [one.replace(kind=one.KEYWORD_ONLY) for one in (*theirs, *ours)]
    hints = {one.name: one.annotation for one in everything}
    run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run

"""The command `drift`: whether what serves does as it did, and whether users ask what they did. Registered by `main`; the detectors are
`services.rollout.drift`, the prompts `services.cli.prompt_views`.

Imports nothing slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import NotFound, UsageFault
from services.cli.options import Output, ServiceOption, Where, anywhere, show

if TYPE_CHECKING:
    from services.rollout.watch_fold import Watched
    from services.store import Store


ContentKey = Annotated[
    str | None,
    typer.Option(
        "--content-key",
        envvar="UNDERSTUDY_CONTROLLER_CONTENT_KEY",
        metavar="KEY",
        help="The key that the words of prompts are encrypted with, better in the environment; without it topics have no names.",
        show_default=False,
    ),
]


@anywhere
def drift(
    where: Where, service: ServiceOption = None, content_key: ContentKey = None, output: Output = "table"
) -> None:
    """Whether stable has become worse since its history was frozen: which metric, by how much, since when.

    Between rollouts every guarded metric, for all users and for each declared segment, has a detector against a day to a week of the
    service's own; so have the judge's scores, where answers are sampled (spec.drift), and the length of answers. All of a service
    together alarm without cause once in a year at most, on average. Services with `drift.prompts`: what users ask about, then and now.

    Examples: understudy drift; understudy drift assistant -o json
    """
    from services.cli.connection import opened, store_url
    from services.cli.prompt_views import prompts_of

    if where.in_cluster:
        raise UsageFault(
            "detectors stand in the platform's store, no resource has them: name it with --store URL; an alarm is in the condition Drift"
        )
    with opened(store_url(where.store)) as store:
        routes = store.routes()
        if service is not None and service not in routes:
            raise NotFound(f"no service {service!r} serves in this store; see `understudy status`")
        names = sorted(routes) if service is None else [service]
        told = [
            {**_told(store, name, routes[name].stable.revision), "prompts": prompts_of(store, name, content_key)}
            for name in names
        ]
    show(output, {"services": told}, _show)


def _told(store: Store, service: str, stable: str) -> dict[str, Any]:
    from services.rollout.drift import kept

    state = kept(store, service)
    known = state is not None and state.revision == stable
    document: dict[str, Any] = {"service": service, "revision": stable, "known": known}
    if state is None or not known:
        return document
    return {
        **document,
        "until": state.done,
        "alarmed_at": state.alarmed_at,
        "evaluated": state.evaluated,
        "weeks_to_false_alarm": state.watch.arl,
        "metrics": [_metric(one) for one in state.watch.watched],
    }


def _metric(one: Watched) -> dict[str, Any]:
    users, mean = one.detector.run
    run = None if mean is None else {"users": users, "mean": one.measured(mean), "since": one.since}
    return {
        "metric": one.metric,
        "users": one.detector.count,
        "before": one.measured(one.before),
        "limit": one.measured(one.detector.m0),
        "late": one.late,
        "run": run,
        "e_value": one.detector.level,
        "threshold": one.detector.arl,
        "alarmed": one.detector.alarmed,
        "excluded": one.excluded,
    }


def _show(document: dict[str, Any]) -> None:
    from rich.text import Text

    from services.cli.narrative import metric_of
    from services.cli.prompt_views import show_prompts
    from services.cli.tables import console, moment, plain_table
    from services.rollout.watch_fold import beyond

    screen = console()
    if not document["services"]:
        screen.print("no service serves yet")
        return
    table = plain_table("service", "stable", "metric", "users", "before", "worse from", "newest run", "evidence", "")
    for one in document["services"]:
        if not one["known"]:
            why = "no history yet: it needs a day of this revision, and users"
            table.add_row(one["service"], one["revision"], why, *[""] * 6)
        for metric in one.get("metrics", ()):
            run, size = metric["run"], _size(metric)
            late = "" if metric["late"] is None else f" (users {beyond(metric['metric'], metric['late'])})"
            newest = "–" if run is None else f"{size(run['mean'])} of {run['users']}"
            since = "" if run is None or run["since"] is None else f" since {moment(run['since'])}"
            table.add_row(
                one["service"], one["revision"], metric_of(metric["metric"]).label + late, f"{metric['users']:,}", size(metric["before"]),
                size(metric["limit"]), newest + since, f"{metric['e_value']:.3g} of {metric['threshold']:.3g}",
                Text("drifted", style="red") if metric["alarmed"] else "",
            )  # fmt: skip
    screen.print(table)
    for one in document["services"]:
        if one.get("evaluated"):
            screen.print(f"{one['service']}: {one['evaluated']}")
        if one["prompts"] is not None:
            show_prompts(screen, one["service"], one["prompts"])


def _size(metric: dict[str, Any]) -> Any:
    points = metric["metric"].partition("[")[0] in ("rating", "judge")
    return lambda value: f"{value:.2f}" if points else f"{value:.1%}"

"""The commands that look beyond what is: `plan` a rollout to come, `replay` past ones. Registered by `main`; what they say is made by
`services.rollout`.

Imports nothing slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, NotFound, UsageFault
from services.cli.options import Output, Where, anywhere, show

if TYPE_CHECKING:
    from services.rollout.planning import Traffic
    from services.rollout.power import Stable
    from services.rollout.replay import Replay
    from services.rollout.resources import LLMService
    from services.store import RolloutRow, Store

Service = Annotated[
    str | None,
    typer.Argument(metavar="[SERVICE]", help="The service; not needed where FILE has one alone.", show_default=False),
]
ResourceFile = Annotated[
    Path | None,
    typer.Option(
        "--resource", "-f", metavar="FILE", help="The service's YAML; default: the one in force.", show_default=False
    ),
]
UsersPerDay = Annotated[
    float | None,
    typer.Option(
        "--users-per-day", "-u", min=0.01, metavar="N", show_default=False,
        help="Different users a day; default: as the store has measured.",
    ),
]  # fmt: skip
UsersPerWeek = Annotated[
    float | None,
    typer.Option(
        "--users-per-week", min=0.01, metavar="N", show_default=False,
        help="Different users a week, where the same ones come again; default: every day's are new.",
    ),
]  # fmt: skip
Known = Annotated[
    list[str] | None,
    typer.Option(
        "--stable", metavar="METRIC=VALUE", show_default=False,
        help="What is known of stable, e.g. `errors=0.02` (share of users); for times and speeds how far users' values lie apart: "
        "`ttft=0.5` (standard deviation of the logarithm), `tokensPerSecond=0.3` (over the mean). May be repeated.",
    ),
]  # fmt: skip


@anywhere
def plan(
    where: Where,
    service: Service = None,
    users_per_day: UsersPerDay = None,
    users_per_week: UsersPerWeek = None,
    resource: ResourceFile = None,
    stable: Known = None,
    output: Output = "table",
) -> None:
    """How long a rollout will take with so many users, and what it would see.

    For each stage: how many users an arm it gathers, how long it takes and what it waits for, and the smallest harm that each guardrail
    sees by then with 80 % probability. Then what is out of reach: a margin that this traffic cannot show before the stage's maxDuration,
    so that the rollout would be held. More users, a wider margin, a larger weight or a longer maxDuration bring it into reach.

    Works before anything runs (`--resource` and `--users-per-day`); with a store, users and stable's values are those measured in the
    last seven days. Rates count users, not requests.

    Examples: understudy plan assistant --users-per-day 5000; understudy plan -f assistant.yaml -u 5000 --stable errors=0.02
    """
    from dataclasses import replace

    from services.cli import plan_views
    from services.rollout.planning import make_plan

    rules, traffic, measured = _ground(where, service, resource, users_per_day, users_per_week)
    traffic = replace(traffic, stable={**traffic.stable, **_known(rules, stable or [])})
    show(output, plan_views.document(rules, traffic, make_plan(rules, traffic), measured), plan_views.show)


Since = Annotated[
    str,
    typer.Option("--since", metavar="AGE|DATE", help="Rollouts that began since then: `7d`, `12h`, or `2026-11-02`."),
]
RolloutId = Annotated[str | None, typer.Option("--rollout", metavar="ID", help="This one alone.", show_default=False)]


@anywhere
def replay(
    where: Where,
    service: Service = None,
    since: Since = "7d",
    resource: ResourceFile = None,
    rollout: RolloutId = None,
    output: Output = "table",
) -> None:
    """What past rollouts would have come to under other rules.

    Plays the recorded users, in the order in which their values became final, through `spec.rollout` of FILE: another alpha, other margins,
    guardrails, steps. Beside it stands what was. It uses the controller's own loop; without FILE, or with the rules that a rollout had, it
    comes out as it did. Nothing is written.

    What was not recorded stays unknown, and is said: users came to the arms by the recorded steps, the record ends when the rollout did
    (rules that are more patient would have gone on), and horizon and settle stay as they were measured. Rows are kept for
    `spec.retention.observations`.

    Examples: understudy replay assistant --since 30d --resource stricter.yaml; understudy replay --rollout 0197a3c2 -f x.yaml
    """
    import time

    from services.cli import replay_views
    from services.cli.connection import opened, store_url

    if where.in_cluster:
        raise UsageFault("users are recorded in the platform's store, not in resources: name it with --store URL")
    began = since_moment(since, time.time())
    rules = None if resource is None else read_resource(resource, service)
    name = service if service is not None or rules is None else rules.name
    with opened(store_url(where.store)) as store:
        rows = _rows(store, name, rollout, began)
        show(output, replay_views.document(_played(store, rows, rules, output)), replay_views.show)


def _rows(store: Store, service: str | None, rollout: str | None, began: float) -> list[RolloutRow]:
    """The rollouts to play, newest first. Raises NotFound."""
    if rollout is not None:
        named = [row for row in store.rollouts(service, limit=10_000) if row.id.startswith(rollout)]
        if len(named) != 1:
            raise NotFound(
                f"{'no rollout' if not named else 'more than one rollout'} {rollout!r}; see `understudy rollouts`"
            )
        return named
    rows = store.rollouts(service, limit=10_000)
    if service is not None and not rows:
        raise NotFound(f"no rollout of {service!r} in this store")
    return [row for row in rows if row.started_at >= began]


def _played(store: Store, rows: list[RolloutRow], rules: LLMService | None, output: str) -> list[tuple[Replay, Replay]]:
    """Each row under its own rules, and under the others."""
    import asyncio
    import logging
    import sys

    from rich.console import Console

    from services.cli.views import parsed
    from services.rollout.replay import replay as play
    from services.rollout.resources import LLMService
    from services.rollout.status import RolloutStatus

    logging.getLogger("services.rollout").setLevel(logging.ERROR)  # the loop's log would tell of it as if it were now
    found = []
    with Console(stderr=True).status("") as progress:
        for number, row in enumerate(rows):
            parsed(row.id, row.status, RolloutStatus)
            parsed(row.id, row.spec, LLMService)

            def tell(done: float, number: int = number, row: RolloutRow = row) -> None:
                if output == "table" and sys.stderr.isatty():
                    progress.update(f"playing {row.revision} ({number + 1} of {len(rows)}): {done:.0%}")

            own = asyncio.run(play(store, row, None, tell))
            found.append((own, own if rules is None else asyncio.run(play(store, row, rules, tell))))
    return found


def since_moment(text: str, now: float) -> float:
    """Seconds since the epoch of an age or a date. Raises UsageFault."""
    from datetime import datetime

    from services.rollout.durations import parse_duration

    try:
        return now - parse_duration(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text).astimezone().timestamp()
        except ValueError:
            raise UsageFault(
                f"--since {text!r}: write an age such as 7d or 12h, or a date such as 2026-11-02"
            ) from None


def _ground(
    where: Where,
    service: str | None,
    resource: Path | None,
    users_per_day: float | None,
    users_per_week: float | None,
) -> tuple[LLMService, Traffic, str | None]:
    """Whose plan it is, with which traffic, and over what time that was measured; None: it was given.

    Raises:
        UsageFault: neither options nor store say enough.
    """
    from services.cli.sources import opened_source
    from services.rollout.planning import given_traffic

    rules = None if resource is None else read_resource(resource, service)
    if users_per_week is not None and users_per_day is None:
        raise UsageFault("--users-per-week needs --users-per-day beside it")
    found, measured = None, None
    if rules is None or users_per_day is None or where.in_cluster or where.store:
        with opened_source(where) as source:
            if rules is None:
                rules = source.resource(_named(service))
            measurement = source.traffic(rules)
        if measurement is not None:
            found, measured = measurement
    if users_per_day is not None:
        found, measured = given_traffic(users_per_day, users_per_week, found), None
    if found is None:
        raise UsageFault(
            f"nobody has asked {rules.name} within seven days, as far as is known here: say --users-per-day N"
        )
    return rules, found, measured


def _named(service: str | None) -> str:
    if service is None:
        raise UsageFault("name a service, or its file with --resource FILE")
    return service


def read_resource(path: Path, service: str | None) -> LLMService:
    """The service of a YAML file: the named one, or the only one.

    Raises:
        NotFound: there is no such file, or no such service in it.
        CliError: the file is wrong; the text names the lines.
    """
    from services.rollout.errors import InvalidResource
    from services.rollout.loading import load

    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        found = {one.name: one for one in load(path)}
    except InvalidResource as error:
        raise CliError(" ".join(str(error).split())) from error
    if service is None and len(found) == 1:
        return next(iter(found.values()))
    if service is None or service not in found:
        wanted = "name one of its services" if service is None else f"no service {service!r} in it"
        raise NotFound(f"{path}: {wanted}; it has {', '.join(found) or 'none'}")
    return found[service]


def _known(rules: LLMService, pairs: list[str]) -> dict[str, Stable]:
    """What `--stable` says. Raises UsageFault."""
    from services.rollout.planning import stable_of
    from services.rollout.plans import plans

    kinds = {
        **{m: p.kind for m, p in plans(rules, "rehearsal", {}).items()},
        **{m: p.kind for m, p in plans(rules, "canary", {}).items()},
    }
    found = {}
    for pair in pairs:
        metric, _, number = pair.partition("=")
        if metric not in kinds:
            raise UsageFault(f"--stable {pair}: {rules.name} has no guardrail {metric!r}; it has {', '.join(kinds)}")
        try:
            found[metric] = stable_of(kinds[metric], float(number))
        except ValueError as error:
            raise UsageFault(f"--stable {pair}: write METRIC=NUMBER, such as errors=0.02 ({error})") from error
    return found

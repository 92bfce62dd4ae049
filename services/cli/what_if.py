"""The commands that look beyond what is: `plan` a rollout to come. Registered by `main`; what they say is made by `services.rollout`.

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
    from services.rollout.resources import LLMService

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
    from services.cli.connection import DEMO_STORE
    from services.cli.sources import opened_source
    from services.rollout.planning import given_traffic

    rules = None if resource is None else read_resource(resource, service)
    if users_per_week is not None and users_per_day is None:
        raise UsageFault("--users-per-week needs --users-per-day beside it")
    found, measured = None, None
    if rules is None or users_per_day is None or where.in_cluster or where.store or DEMO_STORE.exists():
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

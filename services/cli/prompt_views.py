"""What users ask, as `understudy drift` shows it: the test's standing, topics with names of their own words, languages, lengths.

Called by `drift`; the test is `services.rollout.prompt_drift`, the topics are `services.rollout.topics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from services.cli.errors import UsageFault

if TYPE_CHECKING:
    from rich.console import Console

    from services.rollout.prompt_drift import PromptState
    from services.rollout.topics import Change
    from services.store import Store

LANGUAGES = 8
"""Lines of the table; the JSON has all."""
_STYLES = {"new": "red", "grows": "yellow", "shrinks": "yellow"}


def prompts_of(store: Store, service: str, key: str | None) -> dict[str, Any] | None:
    """The document's part; None: nobody looks at the service's prompts. Raises UsageFault where the key is none."""
    from services.rollout.prompt_drift import kept

    state = kept(store, service)
    if state is None:
        return None
    document: dict[str, Any] = {"known": state.reference is not None, "model": state.model}
    if state.reference is None:
        return document
    of = state.nearest
    return {
        **document,
        "reference": state.reference,
        "users": state.users,
        "until": state.done,
        "alarmed_at": state.alarmed_at,
        "round_days": of.length / 86_400,
        "pairs": of.test.pairs if of.test is not None else 0,
        "told_apart": None if of.test is None or of.test.accuracy is None else float(of.test.accuracy),
        "e_value": of.e_value,
        "threshold": of.threshold,
        "asked": _asked(store, service, state, key),
    }


def _asked(store: Store, service: str, state: PromptState, key: str | None) -> dict[str, Any] | None:
    from cryptography.fernet import Fernet

    from services.rollout.prompt_drift import shown, told
    from services.rollout.prompts import read_terms

    sides = shown(store, service, state)
    terms: dict[str, frozenset[str]] = {}
    if key is not None:
        try:
            cipher = Fernet(key)
        except ValueError as error:
            raise UsageFault(f"the content key is none: {error}") from error
        terms = {row.id: read_terms(cipher, row.terms) for side in sides for row in side}
    found = told(*sides, terms)
    if found is None:
        return None
    return {
        "users": list(found.users),
        "named": any(terms.values()),
        "topics": [{"words": list(one.name), **_change(one.change)} for one in found.topics],
        "languages": [{"language": name, **_change(one)} for name, one in found.languages.items()],
        "lengths": {"then": list(found.words[0]), "now": list(found.words[1])},
    }


def _change(one: Change) -> dict[str, Any]:
    return {**asdict(one), "trend": one.trend}


def show_prompts(screen: Console, service: str, found: Mapping[str, Any]) -> None:
    """For people."""
    from services.cli.tables import moment

    if not found["known"]:
        screen.print(f"\nprompts of {service}: no reference yet; it needs a week of samples of 100 users or more")
        return
    apart = "" if found["told_apart"] is None else f"; {found['told_apart']:.0%} of {found['pairs']} pairs told apart"
    verdict = "what users ask has changed" if found["alarmed_at"] is not None else "no change beyond chance"
    screen.print(
        f"\nprompts of {service}: {verdict} since the week from {moment(found['reference'])} "
        f"(evidence {found['e_value']:.3g} of {found['threshold']:.3g}{apart})"
    )
    asked = found["asked"]
    if asked is None:
        screen.print("too few users since then to tell topics")
        return
    if not asked["named"]:
        screen.print("topics have no names without the key: set UNDERSTUDY_CONTROLLER_CONTENT_KEY")
    _show_asked(screen, asked)


def _show_asked(screen: Console, asked: Mapping[str, Any]) -> None:
    from rich.text import Text

    from services.cli.tables import plain_table

    then, now = asked["users"]
    table = plain_table(
        "asked about", f"then ({then} users)", f"now ({now} users)", "difference (95 %, all together)", ""
    )
    for number, topic in enumerate(asked["topics"], 1):
        _row(table, ", ".join(topic["words"]) or f"topic {number}", topic)
    table.add_section()
    for language in asked["languages"][:LANGUAGES]:
        _row(table, f"in {language['language'] or 'a language that cannot be told'}", language)
    table.add_section()
    lengths = [" / ".join(map(str, asked["lengths"][side])) for side in ("then", "now")]
    table.add_row("words: 10th / 50th / 90th percentile", *lengths, "", Text(""))
    screen.print(table)


def _row(table: Any, label: str, one: Mapping[str, Any]) -> None:
    from rich.text import Text

    trend = "" if one["trend"] == "steady" else one["trend"]
    table.add_row(
        label, f"{one['then']:.1%}", f"{one['now']:.1%}", f"{one['lower']:+.1%} to {one['upper']:+.1%}",
        Text(trend, style=_STYLES.get(trend, "")),
    )  # fmt: skip

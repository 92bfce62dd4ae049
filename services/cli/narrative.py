"""Numbers and decisions in words: what a metric is called, how its values read, what one reading says.

Pure; used by `understudy explain`, by the tables and by the demo's report, so that all of them say the same. A reading is the mapping that
the store keeps of `services.evidence.Reading`, with `at` (seconds since the epoch), `stage` and `step` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Unit = Literal["share", "milliseconds", "seconds", "tokens/s", "score", "plain"]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown: `label` in a sentence, `unit` of its values."""

    label: str
    unit: Unit


METRICS: Final[Mapping[str, Metric]] = {
    "errors": Metric("users with a failed request", "share"),
    "refusals": Metric("users who were refused an answer", "share"),
    "ttft": Metric("time to first token", "milliseconds"),
    "tokensPerSecond": Metric("tokens per second", "tokens/s"),
    "feedback": Metric("users who gave a bad mark", "share"),
    "judge": Metric("judged quality", "score"),
    "preference": Metric("answers that people preferred", "share"),
    "escalations": Metric("users who asked for a person", "share"),
    "retries": Metric("users who asked again", "share"),
    "rating": Metric("mean rating", "score"),
    "interTokenGap": Metric("gap between tokens", "milliseconds"),
    "duration": Metric("time to the end of an answer", "seconds"),
    "longAnswers": Metric("users with a long answer", "share"),
    "shortAnswers": Metric("users with a short answer", "share"),
}

MINUS: Final = "−"
NOTEWORTHY: Final = 0.05
"""A smaller saving of users is not worth a sentence."""


def metric_of(name: str) -> Metric:
    """How the metric is shown; an unknown one under its own name. In brackets stands the segment whose users are meant."""
    plain, _, segment = name.removeprefix("goal:").removesuffix("]").partition("[")
    found = METRICS.get(plain) or Metric(plain, "plain")
    return Metric(f"{found.label} in segment {segment}", found.unit) if segment else found


def value_text(metric: str, value: float | None) -> str:
    """An estimate with its unit: `12.4 %`, `183 ms`, `41.2 tokens/s`."""
    if value is None:
        return "unknown"
    match metric_of(metric).unit:
        case "share":
            return f"{100 * value:.1f} %"
        case "milliseconds":
            return f"{1000 * value:,.0f} ms" if value >= 0.1 else f"{1000 * value:.1f} ms"
        case "seconds":
            return f"{value:,.1f} s"
        case "tokens/s":
            return f"{value:,.1f} tokens/s"
        case _:
            return f"{value:.3g}"


def change_text(metric: str, value: float | None, relative: bool) -> str:
    """A difference with its sign and unit: `+3.1 points` for shares, `+21 %` where it is relative."""
    if value is None:
        return "unknown"
    if relative:
        number, unit = _trimmed(100 * value), " %"
    elif metric_of(metric).unit == "share":
        number, unit = _trimmed(100 * value), " points"
    else:
        number, unit = f"{abs(value):.3g}", ""
    return f"{_sign(value)}{number}{unit}"


def e_text(value: float | None) -> str:
    """An e-value: three digits, powers of ten beyond a million."""
    if value is None:
        return "unknown"
    if not math.isfinite(value) or value >= 1e6:
        return "over a million" if not math.isfinite(value) else f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A small probability: `5 %`, `0.83 %`."""
    return f"{100 * share:.2g} %"


def seconds_text(seconds: float) -> str:
    """A duration: `42 s`, `3 min 20 s`, `2 h 5 min`, `1 d 4 h`."""
    whole = max(0, round(seconds))
    for size, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {smaller_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def margin_text(reading: Mapping[str, Any]) -> str:
    """How much worse the candidate may be, as a signed change in the metric's bad direction; how much better a goal asks it to be."""
    better = reading["direction"] == "higher"
    worse = -reading["margin"] if better != (reading["mode"] == "goal") else reading["margin"]
    return change_text(reading["metric"], worse, reading["relative"])


def compared_text(reading: Mapping[str, Any]) -> str:
    """Both arms' estimates and the effect with its interval."""
    metric, relative = reading["metric"], reading["relative"]
    by_people = metric.removeprefix("goal:") == "preference"
    if "control" not in reading:  # a resource's status holds the effect alone
        crowd = "people" if by_people else "mirrored users" if reading["stage"] == "rehearsal" else "users an arm"
        text = f"{_capital(metric_of(metric).label)}: {change_text(metric, reading['effect'], relative)}"
        bounds = reading["lower"], reading["upper"]
        interval = "" if bounds == (None, None) or reading["effect"] is None else f" ({interval_text(reading)})"
        return f"{text}{interval} for {reading['n_candidate']:,} {crowd}."
    candidate, control = (value_text(metric, reading[arm]) for arm in ("candidate", "control"))
    if by_people:
        compared = f"{candidate} of the candidate, {control} of stable, by {reading['n_candidate']:,} people"
    else:
        crowd, others = ("mirrored users", "stable") if reading["stage"] == "rehearsal" else ("users", "the control")
        users, theirs = f"{reading['n_candidate']:,} {crowd}", f"{reading['n_control']:,} of {others}"
        compared = f"{candidate} for {users} of the candidate, {control} for {theirs}"
    text = f"{_capital(metric_of(metric).label)}: {compared}"
    if reading["effect"] is not None:
        text += f"; {change_text(metric, reading['effect'], relative)}"
        if reading["lower"] is not None or reading["upper"] is not None:
            text += f" ({interval_text(reading)})"
    return text + "."


def past_text(reading: Mapping[str, Any]) -> str:
    """How many users brought a past of their own, and what it spared; empty where that is not worth a sentence."""
    known, spared = reading.get("known", 0), reading.get("spared") or 0.0
    if not known or spared < NOTEWORTHY:
        return ""
    users = reading["n_control"] + reading["n_candidate"]
    return (
        f"{known:,} of {users:,} users were known before, which spares about {100 * spared:.0f} % of the users needed."
    )


def interval_text(reading: Mapping[str, Any]) -> str:
    """The effect's anytime-valid interval; an end that is not bounded yet is said to be open."""
    metric, relative = reading["metric"], reading["relative"]
    lower, upper = reading["lower"], reading["upper"]
    if lower is None:
        return f"at most {change_text(metric, upper, relative)}"
    if upper is None:
        return f"at least {change_text(metric, lower, relative)}"
    return f"between {change_text(metric, lower, relative)} and {change_text(metric, upper, relative)}"


def judged_text(reading: Mapping[str, Any]) -> str:
    """What the reading decides, or what it lacks: harm first, then whether promotion is earned."""
    margin = margin_text(reading)
    if reading["mode"] == "goal":
        shown = "is shown" if reading.get("improved") else "is not shown yet"
        return f"As a goal: better by {margin} or more {shown}{_evidence(reading, 'e_promote', 'promote_threshold', 'is needed')}."
    if reading["harmful"]:
        return f"Harm is shown: worse than the margin of {margin}{_evidence(reading, 'e_harm', 'harm_threshold', 'sufficed')}."
    if not reading["trustworthy"] and reading["e_harm"] is None:
        return f"Too few users for a bound yet; the margin is {margin}."
    no_harm = f"No harm beyond the margin of {margin} is shown{_evidence(reading, 'e_harm', 'harm_threshold', 'would show it')}"
    if reading["mode"] != "nonInferior":
        return f"{no_harm}."
    if reading["non_inferior"]:
        return f"{no_harm}; shown not to be worse than that{_evidence(reading, 'e_promote', 'promote_threshold', 'suffices')}."
    lacking = _evidence(reading, "e_promote", "promote_threshold", "is needed") + _missing_bound(reading)
    return f"{no_harm}; not yet shown not to be worse than that{lacking}."


def _evidence(reading: Mapping[str, Any], value: str, threshold: str, means: str) -> str:
    if reading[value] is None:
        return ""
    return f" (e-value {e_text(reading[value])}; {e_text(reading[threshold])} {means})"


def _missing_bound(reading: Mapping[str, Any]) -> str:
    """For metrics decided by an interval: which end has to move where."""
    if reading["e_promote"] is not None:
        return ""
    bad_end = reading["upper"] if reading["direction"] == "lower" else reading["lower"]
    now = change_text(reading["metric"], bad_end, reading["relative"])
    return f": the interval reaches {now} and must stay within {margin_text(reading)}"


def _sign(value: float) -> str:
    return "+" if value >= 0 else MINUS


def _trimmed(value: float) -> str:
    return f"{abs(value):,.0f}" if abs(value) >= 100 else f"{abs(value):.1f}"


def sentence(text: str) -> str:
    """A controller's message as a sentence: capital first, full stop last."""
    return _capital(text if text.endswith((".", "!", "?")) else f"{text}.")


def _capital(text: str) -> str:
    """Capital first, unless the first word is a name (`v6`, `ttft`, `assistant-v2-7c1f`)."""
    word = text.split(" ", 1)[0].rstrip(":,;")
    return text if word in METRICS or not word.isalpha() else text[:1].upper() + text[1:]

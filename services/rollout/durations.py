"""Durations as people write them in resources (`30s`, `10m`, `24h`, `1h30m`, `250ms`) and as the code uses them: float seconds.

Called by `resources` only. Plain numbers are refused: a reader cannot see their unit.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, MultipleOf
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic.config import JsonDict

_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_DAYS: Final = r"[0-9]{1,6}(\.[0-9]{1,3})?d"
_REST: Final = r"([0-9]{1,9}(\.[0-9]{1,3})?(ms|[hms]))"
_WHOLE: Final = (
    f"^({_DAYS}{_REST}*|{_REST}+)$"  # days first: the API server's rules cut them off to compute with the rest
)


def parse_duration(value: Any) -> float:
    """Seconds of a duration such as `1h30m`; a float passes unchanged only when it comes from code (a default, a copied model).

    Raises:
        ValueError: the text is no duration; the message shows the form.
    """
    if isinstance(value, float):
        return value
    if not isinstance(value, str) or not re.match(_WHOLE, value):
        raise ValueError(f"{value!r} is not a duration: write a number with a unit, such as 30s, 10m or 24h")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


def format_duration(seconds: float) -> str:
    """The shortest exact text of a duration: `90s` is `1m30s`."""
    rest = round(seconds * 1000)
    if rest == 0:
        return "0s"
    parts = []
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, round(size * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


_LASTING: Final[JsonDict] = {"rule": "self.matches('[1-9]')", "message": "must be longer than 0s"}
_SCHEMA: Final[JsonDict] = {"type": "string", "pattern": _WHOLE, "maxLength": 32}
_READ: Final = BeforeValidator(parse_duration, json_schema_input_type=str)
_WRITTEN: Final = PlainSerializer(format_duration, return_type=str)

Duration = Annotated[float, _READ, _WRITTEN, WithJsonSchema(_SCHEMA)]
"""Seconds inside, text such as `10m` outside."""

Lasting = Annotated[float, _READ, _WRITTEN, Gt(0), WithJsonSchema({**_SCHEMA, "x-kubernetes-validations": [_LASTING]})]
"""A duration that is not 0."""

Days = Annotated[
    float, _READ, _WRITTEN, MultipleOf(86_400.0), Ge(86_400.0),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,4}d$", "maxLength": 6}),
]  # fmt: skip
"""A duration of whole days, at least one."""

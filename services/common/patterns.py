"""Regular expressions that cannot hang a process: RE2's, whose time grows with the text alone. Used by the gateway's content filters and by
the resource that declares them. The one place that imports RE2.

The syntax is RE2's: no back references, no look-around. Case is ignored unless a pattern says `(?-i)`.
"""

from __future__ import annotations

from typing import Any

import re2


class BadPattern(ValueError):
    """Says what is wrong with a pattern."""


class Pattern:
    """A compiled pattern.

    Raises:
        BadPattern: no expression of RE2's, too large, or one that the empty text matches, which would match everywhere.
    """

    def __init__(self, source: str) -> None:
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        try:
            self._compiled: Any = re2.compile(source, options)
        except re2.error as error:
            raise BadPattern(f"no regular expression of RE2: {_words(error)}") from None
        if self._compiled.search("") is not None:
            raise BadPattern("matches the empty text, and so every text")

    def find(self, text: str, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
        """The first match that lies within [start, end), as (first, beyond). What stands just outside still counts for `\\b`, `^`, `$`."""
        last = len(text) if end is None else min(end, len(text))
        # The library turns the whole text into UTF-8 at each call: it gets no more than it must see.
        before = max(0, start - 1)
        found = self._compiled.search(text[before : last + 1], start - before, last - before)
        return (found.start() + before, found.end() + before) if found is not None else None


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else "unknown error"
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)

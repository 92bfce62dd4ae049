"""Content filters: what declared patterns do to texts, whole or as they come.

A text passes the filters in their order; each sees it as those before it left it. `block` withholds what follows from the match on,
`redact` puts the filter's name in the match's place. Used by the hot path (prompts) and `answer_filter` (answers), only where a service
or this gateway declares filters. No text is ever logged, counted or told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from services.common.patterns import Pattern
from services.common.routing import ContentFilter
from services.common.wire import BadRequest
from services.gateway.requests import ModelRequest

WHOLE_STRIDE: Final = 4096
"""Characters that a search begins in, at once, where the whole text is there."""
MATCHES: Final = 1000
"""Redactions of one prompt or answer; one with more is blocked, so that nobody's text costs much time."""


class Filter:
    """One declared filter, compiled.

    Raises:
        BadPattern: no expression of RE2's.
    """

    def __init__(self, declared: ContentFilter) -> None:
        self.name = declared.name
        self.blocks = declared.action == "block"
        self.on_prompt = declared.applies_to != "answer"
        self.on_answer = declared.applies_to != "prompt"
        self.window = declared.max_length
        self.stride = max(1, declared.max_length // 8)
        self.pattern = Pattern(declared.pattern)
        self.replacement = f"[{declared.name}]"


Filters = tuple[Filter, ...]


@dataclass(slots=True)
class Hits:
    """What the filters did to one prompt or answer. `blocked`: name of the filter that blocked it."""

    blocked: str | None = None
    redacted: dict[str, int] = field(default_factory=dict)

    def redact(self, name: str) -> bool:
        """Counts a redaction; False where there were too many, which blocks."""
        self.redacted[name] = self.redacted.get(name, 0) + 1
        if sum(self.redacted.values()) > MATCHES:
            self.blocked = name
        return self.blocked is None

    def effects(self) -> Iterable[tuple[str, Literal["block", "redact"]]]:
        """(filter, action), each once."""
        if self.blocked is not None:
            yield self.blocked, "block"
        for name in self.redacted:
            yield name, "redact"


class _Sieve:
    """One filter over one text that comes in pieces.

    The text is gone through in strides: a match that begins in the stride at hand is looked for in it and `window` characters more. What
    is found so depends on the text alone, never on how it was cut: a stride is judged once all that its search may see is there, and one
    character more, for the pattern's `\\b` and `$`.
    """

    def __init__(self, rule: Filter, hits: Hits, stride: int) -> None:
        self._rule = rule
        self._hits = hits
        self._stride = stride
        self._text = ""
        self._at = 0

    def push(self, text: str, *, last: bool) -> str:
        """What may go on: all but the last characters, which wait for more; everything with the `last` piece."""
        self._text += text
        rule, stride, made = self._rule, self._stride, []
        reach = stride + rule.window
        while self._at < len(self._text) and (last or self._at + reach < len(self._text)):
            found = rule.pattern.find(self._text, self._at, self._at + reach)
            beyond = min(self._at + stride, len(self._text))
            if found is None or found[0] >= beyond:
                made.append(self._text[self._at : beyond])
                self._at = beyond
            elif rule.blocks:
                self._hits.blocked = rule.name
                break
            elif found[0] == found[1]:  # of no length, as a pattern's `\b` alone: nothing to redact
                made.append(self._text[self._at : found[0] + 1])
                self._at = found[0] + 1
            elif not self._hits.redact(rule.name):
                break
            else:
                made += (self._text[self._at : found[0]], rule.replacement)
                self._at = found[1]
        if self._at > stride:  # one character stays, for the pattern's look at what is before
            self._text, self._at = self._text[self._at - 1 :], 1
        return "".join(made)


class Stream:
    """One text that comes in pieces, through all filters. After a block (`hits.blocked`) nothing more comes out, what waited included."""

    def __init__(self, filters: Filters, hits: Hits, *, whole: bool = False) -> None:
        self._sieves = [_Sieve(one, hits, WHOLE_STRIDE if whole else one.stride) for one in filters]
        self._hits = hits

    def push(self, text: str, *, last: bool = False) -> str:
        """What may go on now."""
        for sieve in self._sieves:
            ended = last and self._hits.blocked is None
            text = sieve.push(text, last=ended)
        return text


def sift(filters: Filters, text: str, hits: Hits) -> str:
    """A whole text through the filters; what is left of it means nothing where `hits.blocked`."""
    for one in filters:
        if hits.blocked is not None:
            break
        if not one.blocks:
            text = Stream((one,), hits, whole=True).push(text, last=True)
        elif one.pattern.find(text) is not None:  # of any length: the whole text is there
            hits.blocked = one.name
    return text


def sift_answer(filters: Filters, text: str) -> str:
    """An answer as a user would have got it in one piece; empty where it would have been withheld. For the judge."""
    hits = Hits()
    left = sift(filters, text, hits)
    return left if hits.blocked is None else ""


def sift_prompt(filters: Filters, request: ModelRequest) -> tuple[ModelRequest, Hits]:
    """The request as an engine may see it.

    Raises:
        BadRequest: a filter blocks it, with the filter's name, never with what matched; or it is written in numbers of tokens.
    """
    hits = Hits()
    if request.has_token_prompt():
        raise BadRequest(
            "`prompt` must be text: content filters cannot read token numbers.", param="prompt", code="content_filter"
        )
    request = request.with_texts(lambda text: sift(filters, text, hits))
    if hits.blocked is not None:
        raise PromptBlocked(hits.blocked)
    return request, hits


class PromptBlocked(BadRequest):
    """A filter's refusal. `filter`: its name."""

    default_code = "content_filter"

    def __init__(self, name: str) -> None:
        super().__init__(f"The prompt was refused by the content filter `{name}`.")
        self.filter = name

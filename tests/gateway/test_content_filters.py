"""Content filters over texts: what is found and what goes on depends on the text alone, never on how it came."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.patterns import BadPattern, Pattern
from services.common.routing import ContentFilter
from services.gateway.content_filters import MATCHES, Filter, Filters, Hits, Stream, sift, sift_answer


def rule(pattern: str, action: str = "redact", max_length: int = 12, name: str = "x") -> Filter:
    return Filter(
        ContentFilter(name=name, applies_to="both", pattern=pattern, action=action, max_length=max_length)  # type: ignore[arg-type]
    )


def streamed(filters: Filters, pieces: Sequence[str]) -> tuple[str, str | None]:
    """What has come out at the end, and the filter that blocked."""
    hits = Hits()
    stream = Stream(filters, hits)
    out = ""
    for piece in pieces:
        out += stream.push(piece)
        if hits.blocked is not None:
            return out, hits.blocked
    return out + stream.push("", last=True), hits.blocked


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


TEXTS = st.text(alphabet="abcx1. é\n", max_size=120)
CUTS = st.lists(st.integers(0, 200), max_size=30)
BOUNDED = st.sampled_from(["abc", r"\bab\b", "a{2,5}", "[0-9]{3}", "^a", "c$", "é.x", "a|ab|abc", r"\B1"])
ANY = st.sampled_from(["a.*c", "a+", "x[^.]*", "(a|b)+1", r"\b", "abc|\\b", "b.{20}c"])
ACTIONS = st.sampled_from(["block", "redact"])


@given(
    text=TEXTS, one=CUTS, other=CUTS, rules=st.lists(st.tuples(BOUNDED | ANY, ACTIONS, st.integers(1, 20)), min_size=1, max_size=3)
)  # fmt: skip
def test_no_cutting_changes_what_goes_on(
    text: str, one: list[int], other: list[int], rules: list[tuple[str, str, int]]
) -> None:
    filters = tuple(rule(*one_rule) for one_rule in rules)
    assert streamed(filters, cut(text, one)) == streamed(filters, cut(text, other)) == streamed(filters, list(text))


@given(text=TEXTS, places=CUTS, pattern=BOUNDED)
def test_matches_within_the_window_are_redacted_as_in_the_whole_text(
    text: str, places: list[int], pattern: str
) -> None:
    filters = (rule(pattern),)
    expected = re.sub(pattern, "[x]", text, flags=re.IGNORECASE | re.ASCII)
    if pattern.endswith("$"):  # Python's `$` also stands before a last line feed
        expected = re.sub(pattern.removesuffix("$") + r"\Z", "[x]", text, flags=re.IGNORECASE)
    assert streamed(filters, cut(text, places)) == (expected, None)
    assert sift(filters, text, Hits()) == expected


@given(text=TEXTS, places=CUTS, pattern=BOUNDED)
def test_a_block_is_found_in_pieces_where_it_is_in_the_whole(text: str, places: list[int], pattern: str) -> None:
    filters = (rule(pattern, "block"),)
    hits = Hits()
    sift(filters, text, hits)
    out, blocked = streamed(filters, cut(text, places))
    assert blocked == hits.blocked
    found = Pattern(pattern).find(text)
    assert text.startswith(out)
    assert found is None or len(out) <= found[0]  # nothing from the match on has gone out


@settings(max_examples=30)
@given(text=TEXTS, places=CUTS, window=st.integers(1, 40))
def test_no_more_is_held_back_than_was_declared(text: str, places: list[int], window: int) -> None:
    stream = Stream((rule("never", max_length=window),), Hits())
    came = sent = 0
    for piece in cut(text, places):
        came += len(piece)
        sent += len(stream.push(piece))
        assert came - sent <= window + 2 * max(1, window // 8)


def test_filters_see_what_those_before_them_left() -> None:
    hide = rule(r"\d{4}", name="digits")
    refuse = rule("1234|digits", "block", name="refuse")
    assert streamed((hide, refuse), ["code 12", "34"])[1] == "refuse"  # by the name in brackets
    assert streamed((refuse, hide), ["code 12", "34"])[1] == "refuse"
    assert streamed((refuse, hide), ["code 9999"]) == ("code [digits]", None)
    assert sift_answer((refuse,), "code 1234") == ""


@pytest.mark.parametrize("pattern", ["(", "a{2000}", "(?=a)", r"(a)\1", "((a{900}){900})", "a*", "", "^", "x|"])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Pattern(pattern)


def test_case_is_ignored_unless_the_pattern_says_otherwise() -> None:
    assert Pattern("secret").find("a SECRET") == (2, 8)
    assert Pattern("(?-i)secret").find("a SECRET") is None


@pytest.mark.parametrize("pattern", ["(a+)+b", "a(.*b)?", "(x+x+)+y", "a"])
@pytest.mark.parametrize("action", ["block", "redact"])
def test_no_pattern_and_text_take_long(pattern: str, action: str) -> None:
    """Each of these takes minutes or more where time grows with the square of the text, or worse."""
    filters = (rule(pattern, action, max_length=1000),)
    began = time.perf_counter()
    for text in ("a" * 2_000_000, "x" * 2_000_000):
        sift(filters, text, Hits())
    assert time.perf_counter() - began < 5.0


def test_a_text_with_too_many_matches_is_blocked() -> None:
    hits = Hits()
    assert sift((rule("a"),), "a " * MATCHES, hits) == "[x] " * MATCHES
    assert hits.blocked is None
    sift((rule("a"),), "a ", hits)
    assert hits.blocked == "x"

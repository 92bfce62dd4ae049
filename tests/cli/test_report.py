"""The demo's report: the store's numbers, valid JSON, and a page that needs no network."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo import report
from services.store import RolloutRow, Store
from tests.fakes.rollout_rows import START, TTFT, Gateway, HandClock, audit, gate, reading, route, row, target

EXPECTATIONS = {"v2": "advance", target("3").revision: "abort in canary on feedback", "6": "abort in gate"}
META = {"title": "Three versions", "what": {"v2": "more facts"}, "facts": {"alpha": "0.1"}}


@pytest.fixture
def story(store: Store, clock: HandClock) -> Store:
    """v2 promoted, v3 rolled back on feedback, v6 refused by the gate; two stable users, three in canaries."""
    gateway = Gateway(store)
    store.publish_route(route())
    _promoted(store, clock, gateway)
    _rolled_back(store, clock, gateway)
    refused = row(
        "r6", "6", started_at=clock.now, stage="finished", verdict="abort", reason="GateHarmful", message="v6 answers less",
        metric="accuracy", decided_in="gate", decided_at=clock.now + 2, finished_at=clock.now + 2, gate=gate(0.2),
    )  # fmt: skip
    store.commit_look(refused, evidence={}, at=clock.now)
    clock.now += 2
    return store


def _promoted(store: Store, clock: HandClock, gateway: Gateway) -> None:
    gateway.serve("u0", "stable", "1", START + 2, rollout="r2", ttft=0.06, thumb=None)
    store.append_audit([audit("r2", "gate", "GatePassed", "as good", START + 1)])
    clock.now = START + 5
    store.publish_route(route(candidate=target("2"), rollout="r2", salt="00", stage="canary", weight=5000))
    gateway.serve("u1", "candidate", "2", START + 6, rollout="r2", ttft=0.05, thumb=1.0)
    gateway.serve("u2", "control", "1", START + 7, rollout="r2", ttft=0.06, thumb=-1.0)
    gateway.serve("u3", "stable", "1", START + 7, rollout="r2", ttft=0.07, thumb=None)
    done = row(
        "r2", "2", stage="finished", verdict="advance", reason="Promoted", message="shown not worse", decided_in="canary",
        decided_at=START + 20, finished_at=START + 30, counts={"usersControl": 40, "usersCandidate": 41, "pairs": 12},
    )  # fmt: skip
    for at in (START + 10, START + 12, START + 14, START + 20):
        same = at in (START + 12, START + 14)
        shown = reading("ttft", **TTFT, at=at) | {"n_candidate": 30 if same else int(at - START)}
        store.commit_look(done, evidence={}, readings=[shown], at=at)
    clock.now = START + 20
    store.publish_route(route(stable=target("2")))
    clock.now = START + 30


def _rolled_back(store: Store, clock: HandClock, gateway: Gateway) -> None:
    began = clock.now
    gateway.serve("u4", "candidate", "3", began + 1, rollout="r3", ttft=0.05, thumb=-1.0)
    over = row(
        "r3", "3", started_at=began, stage="finished", verdict="abort", reason="FeedbackHarmful", metric="feedback",
        message="</script><script>alert(1)</script> {{data}}", decided_in="canary", decided_at=began + 9, finished_at=began + 9, step=1,
    )  # fmt: skip
    store.commit_look(over, evidence={}, readings=[reading("feedback", at=began + 9)], at=began + 9)
    clock.now = began + 10


def test_rollouts_carry_the_stores_numbers(story: Store, tmp_path: Path) -> None:
    built = report.build(story, "assistant", EXPECTATIONS, tmp_path / "out", META)
    assert built == json.loads((tmp_path / "out/report.json").read_text())
    first, second, third = built["rollouts"]
    assert [one["version"] for one in built["rollouts"]] == ["2", "3", "6"]
    assert (first["verdict"], first["stage"], first["reason"], first["seconds"]) == (
        "advance",
        "canary",
        "Promoted",
        30,
    )
    assert first["users"] == {"candidate": 41, "control": 40, "mirrored": 12}
    assert (first["expected"], first["what"]) == ("advance", "more facts")
    assert (second["expected"], second["verdict"], second["decisive"]) == (
        "abort in canary on feedback",
        "abort",
        "feedback",
    )
    assert (third["stage"], third["metrics"], third["why"]) == ("gate", [], "v6 answers less.")
    assert [one["as_expected"] for one in built["rollouts"]] == [True, True, True]

    [stored] = story.readings("r3")
    assert {name: second["metrics"][0][name] for name in stored} == stored
    assert second["why"].startswith("Users who gave a bad mark: 50.0 % for 66 users of the candidate")
    assert (built["users"], built["requests"]) == (81, 5)
    assert built["champion"] == {"revision": "assistant-v2-7c1f", "version": "2"}


def test_series_and_traffic_are_the_stores(story: Store) -> None:
    built = report.assemble(story, "assistant", {}, {})
    assert built["rollouts"][0]["series"] == story.series("r2", built["series_bucket_seconds"])
    assert sum(point["thumbs_down"] for point in built["rollouts"][0]["series"]) == 1
    assert built["traffic"]["revisions"] == ["assistant-v1-7c1f", "assistant-v2-7c1f", "assistant-v3-7c1f"]
    assert sum(point["requests"] for point in built["traffic"]["points"]) == 5


def test_stages_follow_gate_and_routes(story: Store) -> None:
    first, second, third = report.assemble(story, "assistant", {}, {})["rollouts"]
    spans = [(one["stage"], one["weight"], one["from"] - START, one["to"] - START) for one in first["stages"]]
    assert spans == [("gate", 0, 0, 1), ("start", 0, 1, 5), ("canary", 5000, 5, 20), ("watch", 0, 20, 30)]
    assert [one["stage"] for one in third["stages"]] == ["gate"]
    assert second["stages"][-1]["to"] == second["finished_at"]


def test_a_reading_that_repeats_is_drawn_once(story: Store) -> None:
    drawn = report.assemble(story, "assistant", {}, {})["rollouts"][0]["readings"]["ttft"]
    assert [one["at"] - START for one in drawn] == [10, 12, 14, 20]
    many = [{**reading("ttft", **TTFT), "at": float(at)} for at in range(50)]
    assert [one["at"] for one in report.drawn(many)["ttft"]] == [0.0, 49.0]


@pytest.mark.parametrize(
    ("expected", "right"),
    [
        ("abort in canary on feedback", True), ("abort", True), ("abort/canary", True), ("abort in rehearsal", False),
        ("abort in canary on ttft", False), ("advance", False),
    ],
)  # fmt: skip
def test_expectations_are_words_that_must_all_be_met(expected: str, right: bool) -> None:
    assert report.as_expected(expected, "abort", "canary", "feedback") is right


def test_an_open_rollout_meets_no_expectation(running: RolloutRow, store: Store) -> None:
    [one] = report.assemble(store, "assistant", {"3": "advance"}, {})["rollouts"]
    assert (one["verdict"], one["as_expected"], one["finished_at"]) == (None, False, None)


def test_a_store_without_rollouts_makes_an_empty_report(store: Store, tmp_path: Path) -> None:
    built = report.build(store, "assistant", EXPECTATIONS, tmp_path, {})
    assert (built["rollouts"], built["champion"], built["seconds"]) == ([], None, 0)


class Page(html.parser.HTMLParser):
    """Which elements and addresses a page has, and what its data say."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.data = ""
        self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self._in_data = tag == "script" and named.get("id") == "data"
        self.addresses += [f"{tag} {name}" for name in ("src", "href", "action") if named.get(name)]

    def handle_data(self, data: str) -> None:
        self.data += data if self._in_data else ""

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def test_the_page_needs_nothing_else_and_no_message_breaks_it(story: Store, tmp_path: Path) -> None:
    built: Mapping[str, Any] = report.build(story, "assistant", EXPECTATIONS, tmp_path, META)
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.addresses == []
    assert json.loads(page.data) == built
    assert page.tags.count("script") == 2
    assert not re.search(r"@import|url\((?!#)|\bfetch\(|XMLHttpRequest|//cdn|<link", text)
    outside = {
        address for address in re.findall(r"https?://[^\s\"'<)\\]+", text) if address != "http://www.w3.org/2000/svg"
    }
    assert outside == set()


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    story: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.build(story, "assistant", EXPECTATIONS, tmp_path, META)
    assert (tmp_path / "report.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("report")] == ["report.json"]

"""The demo's report: `report.json` with the numbers and `report.html` that draws them, both made from the store alone.

Called by the demo when its story has ended; may be called again at any time on the same store. The page is one file without any address in
it: the JSON, the drawing script (`report_charts.js`, `report_page.js`) and the style (`report_template.html`) are all inside.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.cli import narrative, views
from services.cli.series import drawn, stages
from services.rollout.status import RolloutStatus
from services.store import Store
from services.store.rows import RolloutRow

TRAFFIC_BUCKETS: Final = 120
"""The whole story is cut into about so many buckets, each at least a second long."""
SERIES_BUCKETS: Final = 90
STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
"""Bucket sizes in seconds; a longer story takes the last one."""
OUTCOMES: Final = {"advance": "promoted", "abort": "aborted", "hold": "held", "error": "void"}
"""What a verdict means for the version, in one word."""
FILLER: Final = frozenset({"in", "on", "the", "step"})


def build(
    store: Store, service: str, expectations: Mapping[str, str], out_dir: Path, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `report.json` and `report.html` into `out_dir` and returns the JSON document.

    `expectations`: revision or version (`2`, `v2`) to what should become of it: verdict, then stage and metric where they matter, such as
    `advance`, `abort in canary on feedback`. `meta`: `title` of the page, `what` (version to what it is, in a few words), `facts` (label
    to text, shown at the end: settings, machine). All three may be missing.

    Raises:
        StoreError: the store could not be read; nothing was written then.
        OSError: the files could not be written; an older report stays whole.
    """
    document = assemble(store, service, expectations, meta)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(out_dir / "report.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    _write(out_dir / "report.html", page(document))
    return document


def assemble(store: Store, service: str, expectations: Mapping[str, str], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The report as a JSON document; times are seconds since the epoch, durations seconds."""
    rows = sorted(store.rollouts(service), key=lambda row: row.started_at)
    now = store.now()
    started = rows[0].started_at if rows else now
    finished = max((row.finished_at or now for row in rows), default=now)
    whats = {_plain(key): text for key, text in meta.get("what", {}).items()}
    expected = {_plain(key): text for key, text in expectations.items()}
    traffic_bucket = bucket_seconds(finished - started, TRAFFIC_BUCKETS)
    series_bucket = bucket_seconds(finished - started, SERIES_BUCKETS)
    traffic = [dict(point) for point in store.traffic(service, started, finished, traffic_bucket)]
    audit = [views.audit_document(entry) for entry in store.audit(service, limit=10_000)]
    audit.sort(key=lambda entry: entry["at"])
    rollouts = [_rollout(store, row, expected, whats, series_bucket, now) for row in rows]
    route = store.route(service)
    revisions = list(dict.fromkeys(point["revision"] for point in sorted(traffic, key=lambda point: point["at"])))
    return {
        "title": meta.get("title") or f"{len(rows)} rollouts of {service}",
        "service": service,
        "generated_at": now,
        "started_at": started,
        "finished_at": finished,
        "seconds": finished - started,
        "users": sum(one["users"]["candidate"] + one["users"]["control"] for one in rollouts),
        "requests": sum(point["requests"] for point in traffic),
        "champion": None if route is None else {"revision": route.stable.revision, "version": route.stable.version},
        "rollouts": rollouts,
        "series_bucket_seconds": series_bucket,
        "traffic": {"bucket_seconds": traffic_bucket, "revisions": revisions, "points": traffic},
        "audit": audit,
        "facts": dict(meta.get("facts", {})),
    }


def _rollout(
    store: Store, row: RolloutRow, expected: Mapping[str, str], whats: Mapping[str, str], bucket: float, now: float
) -> dict[str, Any]:
    readings = store.readings(row.id)
    told = views.explanation(row, readings, store.audit(rollout=row.id), now)
    state = views.status_of(row)
    wish = expected.get(_plain(row.revision), expected.get(_plain(row.version), row.expected))
    ended = None if state.verdict == "continue" else state.verdict
    return {
        "revision": row.revision,
        "expected": wish,
        "as_expected": None if wish is None else as_expected(wish, ended, views.ended_in(state), state.metric),
        "verdict": ended,
        "outcome": OUTCOMES.get(ended or ""),
        "reason": state.reason,
        "stage": views.ended_in(state),
        "seconds": told["seconds"],
        "users": told["users"],
        "metrics": told["metrics"],
        "id": row.id,
        "version": row.version,
        "kind": state.kind,
        "step": state.step,
        "what": whats.get(_plain(row.version), ""),
        "decisive": state.metric,
        "message": state.message,
        "headline": told["headline"],
        "sentences": told["sentences"],
        "why": why(state, told),
        "started_at": row.started_at,
        "decided_at": state.decided_at,
        "finished_at": row.finished_at,
        "gate": state.gate,
        "stages": stages(store, row, told["audit"], now),
        "series": [dict(point) for point in store.series(row.id, bucket)],
        "readings": drawn(readings),
    }


def as_expected(expected: str, verdict: str | None, stage: str, metric: str | None) -> bool:
    """Whether a rollout ended as its expectation's words say: each of them is its verdict, its stage or its deciding metric."""
    return {word for word in expected.replace("/", " ").split() if word not in FILLER} <= {verdict, stage, metric}


def why(state: RolloutStatus, told: Mapping[str, Any]) -> str:
    """The decision in one sentence, with the numbers of the metric that made it."""
    for reading in told["metrics"]:
        if reading["metric"] == state.metric:
            return str(reading["compared"])
    return narrative.sentence(state.message) if state.message else str(told["headline"])


def bucket_seconds(seconds: float, buckets: int) -> float:
    """The smallest usual bucket that cuts `seconds` into at most so many."""
    return float(next((step for step in STEPS if seconds / step <= buckets), STEPS[-1]))


def page(document: Mapping[str, Any]) -> str:
    """The document as one HTML file that needs nothing else."""
    here = Path(__file__).parent
    # `<` cannot end the script element early, whatever a message contains; JSON reads the escape back.
    data = json.dumps(document, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "data": data,
        "charts": (here / "report_charts.js").read_text(),
        "page": (here / "report_page.js").read_text(),
    }
    html = (here / "report_template.html").read_text()
    for name in ("charts", "page", "data"):  # data last: nothing in it may be taken for a place to fill
        html = html.replace(f"{{{{{name}}}}}", parts[name])
    return html


def _plain(name: str) -> str:
    """`v2` and `2` name the same version."""
    return name[1:] if name[:1] == "v" and name[1:].isdigit() else name


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a report."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

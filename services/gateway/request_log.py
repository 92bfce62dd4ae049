"""Log lines of requests: each carries the request's id, and the trace's where there is one. Called by the hot path; the events stand in
`services.common.events`. Nothing here may be handed a prompt, an answer, a key or a user.
"""

from __future__ import annotations

import logging

from services.common import events
from services.common.wire import ApiError
from services.gateway.tracing import Trace
from services.store.records import Observation

log = logging.getLogger(__name__)


def refused(request_id: str, trace: Trace | None, error: ApiError) -> None:
    """The client is told an error; at debug."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug(
            events.REQUEST_REFUSED,
            {"status": error.status, "code": error.code or error.type, **_ids(request_id, trace)},
        )


def crashed(request_id: str, trace: Trace | None) -> None:
    """A fault of the gateway; while its exception is handled."""
    log.exception(events.REQUEST_CRASHED, _ids(request_id, trace))


def ended(row: Observation, trace: Trace | None) -> None:
    """An attempt has ended: at info where the engine failed, else at debug."""
    level = logging.INFO if row.outcome == "error" else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    told: dict[str, object] = {
        "service": row.service, "revision": row.revision, "arm": row.arm, "attempt": row.attempt, "outcome": row.outcome,
        "status": row.status, "error": row.error or "no error", "seconds": row.duration, "first_token": row.ttft,
        "tokens_in": row.tokens_in, "tokens_out": row.tokens_out,
    }  # fmt: skip
    log.log(level, events.ATTEMPT_ENDED, told | _ids(row.request_id, trace))


def ejected(row: Observation, trace: Trace | None, failures: int, seconds: float) -> None:
    """This attempt's failure ejects its revision."""
    told: dict[str, object] = {
        "service": row.service,
        "revision": row.revision,
        "failures": failures,
        "seconds": seconds,
    }
    log.warning(events.REVISION_EJECTED, told | _ids(row.request_id, trace))


def _ids(request_id: str, trace: Trace | None) -> dict[str, object]:
    ids: dict[str, object] = {"request_id": request_id}
    if trace is not None:
        ids["trace_id"] = trace.trace_id
    return ids

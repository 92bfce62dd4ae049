"""The vocabulary of logs: every event that a process tells, with its name, its words and its fields. The one place where they are written;
docs/generate.py makes the reference page from it.

An event is logged with its fields as one mapping: `log.warning(events.STORE_AWAY, {"error": error})`. Fields hold names, numbers and ids,
never a prompt, an answer, a key or what a user is called. Lines of a request carry `request_id`, and `trace_id` where it is traced.
"""

from __future__ import annotations

from typing import Final


class Event(str):
    """The words of a log line, with `%(field)s` for its fields; `name` says which event it is."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, words: str) -> Event:
        made = super().__new__(cls, words)
        made.name = name
        return made


LEVEL_CHANGED: Final = Event("process.level", "the level is %(level)s now")

# The gateway
GATEWAY_STARTED: Final = Event(
    "gateway.started", "gateway %(gateway)s listens on %(host)s:%(port)d, traces: %(traces)s"
)
REQUEST_REFUSED: Final = Event("request.refused", "refused with %(status)d: %(code)s")
REQUEST_CRASHED: Final = Event("request.crashed", "request %(request_id)s failed in the gateway")
ATTEMPT_ENDED: Final = Event(
    "attempt.ended", "%(revision)s (%(arm)s): %(outcome)s after %(seconds).3f s, status %(status)d, %(error)s"
)
REVISION_EJECTED: Final = Event(
    "revision.ejected",
    "%(service)s: %(revision)s failed %(failures)d times in a row and is ejected for %(seconds).0f s",
)
MIRROR_CRASHED: Final = Event("mirror.crashed", "a mirrored pair failed")

# The routing table
STORE_AWAY: Final = Event("store.away", "the store cannot be reached; going on with the last routing table: %(error)s")
STORE_BACK: Final = Event("store.back", "the store is reachable again")
ROUTE_REFUSED: Final = Event("route.refused", "route version %(version)d refused: %(error)s")
CACHE_UNREADABLE: Final = Event("cache.unreadable", "the kept routing table is unreadable and ignored: %(error)s")
CACHE_UNWRITABLE: Final = Event("cache.unwritable", "the routing table could not be kept on disk: %(error)s")

# The recorder
RECORDS_WAIT: Final = Event("records.wait", "records wait on disk, the store does not take them: %(error)s")
RECORDS_FLOW: Final = Event("records.flow", "the store takes records again")
RECORD_REFUSED: Final = Event("record.refused", "the store refuses record %(sequence)d for good: %(error)s")
RECORDS_REPLAYED: Final = Event("records.replayed", "replayed %(count)d records of boot %(boot)s")
LEASE_LEFT: Final = Event("lease.left", "the lease was not ended: %(error)s")
JOURNAL_UNWRITABLE: Final = Event("journal.unwritable", "the journal cannot be written: %(error)s")
JOURNAL_TORN: Final = Event("journal.torn", "%(file)s:%(line)d is no record and is passed over: %(error)s")

# Traces
TRACES_DROPPED: Final = Event("traces.dropped", "%(spans)d spans are dropped: %(error)s")
TRACES_FLOW: Final = Event("traces.flow", "traces are delivered again")
TRACES_CRASHED: Final = Event("traces.crashed", "a batch of traces is dropped")
ASSESSMENT_LOST: Final = Event("assessment.lost", "feedback on %(request_id)s is no assessment: %(error)s")

EVENTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Event))
"""All of them, in the order in which they stand above."""

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

# The controller
CONTROLLER_STARTED: Final = Event("controller.started", "acting on LLMServices in %(where)s")
CONTROLLER_BUSY: Final = Event(
    "controller.busy", "threads are still busy after %(seconds).0f s; the next controller does again what they did"
)
LOCK_AWAY: Final = Event("lock.away", "standing by: %(error)s")
LOCK_TAKEN: Final = Event("lock.taken", "the lock is ours: acting")
FILE_READ: Final = Event("file.read", "%(file)s was read again: %(services)s")
FILE_UNREADABLE: Final = Event("file.unreadable", "%(file)s: %(error)s; the last version stays in force")
FILE_WRONG: Final = Event("file.wrong", "the changed file is wrong, the last version stays in force:\n%(error)s")
SERVICE_LEFT: Final = Event("service.left", "service %(service)s has left the file; it serves on without a controller")
SERVICE_CRASHED: Final = Event("service.crashed", "service %(service)s")

# A service's looks
DECIDED: Final = Event("look.decided", "%(service)s: %(action)s %(reason)s: %(words)s")
LOOK_LOCKED: Final = Event("look.locked", "%(service)s: no look without the lock: %(error)s")
LOOK_WITHOUT_STORE: Final = Event(
    "look.without_store", "%(service)s: the store is away, nothing was decided: %(error)s"
)
LOOK_CRASHED: Final = Event("look.crashed", "%(service)s: the look failed")
REGISTRY_AWAY: Final = Event("registry.away", "%(service)s: registry: %(error)s")
REGISTRY_UNTOLD: Final = Event("registry.untold", "%(service)s: registry: %(error)s; will be told at a later look")
ALIASES_UNCLAIMED: Final = Event(
    "aliases.unclaimed", "%(service)s: aliases of %(model)s cannot be claimed yet: %(error)s"
)
ALIASES_KEPT: Final = Event("aliases.kept", "%(service)s: aliases cannot be given up: %(error)s")
PLATFORM_AWAY: Final = Event("platform.away", "%(service)s: platform: %(error)s")
PLATFORM_MISSING: Final = Event("platform.missing", "%(service)s: platform %(platform)s is not there: %(error)s")
EVIDENCE_ANEW: Final = Event("evidence.anew", "%(service)s: evidence is folded anew: %(error)s")
DRIFT_ANEW: Final = Event("drift.anew", "%(service)s: the detectors of its drift begin anew: %(error)s")
PROMPTS_ANEW: Final = Event("prompts.anew", "%(service)s: the test of its prompts begins anew: %(error)s")
EMBEDDING_REFUSED: Final = Event("embedding.refused", "a prompt stays without embedding: %(error)s")
EXPERIMENT_UNREADABLE: Final = Event(
    "experiment.unreadable", "experiment %(rollout)s cannot be read and counts as ended: %(error)s"
)

# Engines
ENGINE_CRASHED: Final = Event("engine.crashed", "engine %(engine)s")
ENGINE_REFUSED: Final = Event("engine.refused", "engine %(engine)s is refused: %(error)s")
ENGINE_WAITS: Final = Event("engine.waits", "engine %(engine)s: %(error)s; will be tried again")
ENGINE_SCALED: Final = Event("engine.scaled", "engine %(engine)s may have %(least)d to %(most)d replicas")
ENGINE_UNSCALED: Final = Event("engine.unscaled", "engine %(engine)s cannot be scaled yet: %(error)s")
ENGINE_REMOVED: Final = Event("engine.removed", "engine %(engine)s is removed")
ENGINE_STAYS: Final = Event("engine.stays", "engine %(engine)s cannot be removed yet: %(error)s")

# Beside a service's looks
JUDGE_WITHOUT_KEY: Final = Event(
    "judge.without_key",
    "%(service)s names a judge or samples, but UNDERSTUDY_CONTROLLER_CONTENT_KEY is not set: nothing is judged",
)
JUDGE_UNUSABLE: Final = Event(
    "judge.unusable", "who judges or reads for %(service)s cannot be asked: %(error)s; trying again"
)
JUDGE_AWAY: Final = Event("judge.away", "judge of %(service)s: %(error)s")
JUDGED: Final = Event("judge.judged", "judge of %(service)s, pairs so far: %(counts)s")
TASK_CRASHED: Final = Event("task.crashed", "%(task)s ended for good, until the resource or the controller changes")
SAMPLES_WAIT: Final = Event("samples.wait", "samples of %(service)s: %(error)s")
NOTIFICATIONS_WAIT: Final = Event("notifications.wait", "notifications of %(service)s: %(error)s")
NOTIFICATION_LOST: Final = Event(
    "notification.lost", "notification %(notification)s: %(about)s was not delivered: %(error)s"
)
COSTS_WAIT: Final = Event("costs.wait", "costs of %(service)s: %(error)s")
RETENTION_WAITS: Final = Event("retention.waits", "retention of %(service)s: %(error)s")
ROWS_DELETED: Final = Event("rows.deleted", "%(service)s: %(count)d old rows are deleted")

# Resources of a cluster
RESOURCES_UNLISTED: Final = Event("resources.unlisted", "resources cannot be listed: %(error)s")
WATCH_ENDED: Final = Event("watch.ended", "watching resources ended: %(error)s")
RESOURCE_UNTOLD: Final = Event("resource.untold", "%(service)s: %(error)s")
RESOURCE_CRASHED: Final = Event("resource.crashed", "%(service)s: the resource could not be told")
RESOURCE_UNREAD: Final = Event("resource.unread", "%(service)s: cannot be read again: %(error)s")
STATUS_WAITS: Final = Event("status.waits", "%(service)s: no status without the store: %(error)s")
COMMAND_REFUSED: Final = Event("command.refused", "%(service)s: annotation %(annotation)s is refused: %(error)s")
COMMAND_WAITS: Final = Event("command.waits", "%(service)s: command %(command)s waits for the store: %(error)s")
ADMISSION_REFUSED: Final = Event("admission.refused", "refused: %(error)s")
CERTIFICATE_UNREADABLE: Final = Event(
    "certificate.unreadable", "the webhook's certificate cannot be read again: %(error)s"
)

# Files of versions
VERSION_FETCHED: Final = Event("version.fetched", "%(folder)s is there")
VERSION_UNFETCHED: Final = Event("version.unfetched", "%(error)s")
VERSION_REMOVED: Final = Event("version.removed", "removed %(digest)s, which nobody used")
VERSIONS_KEPT: Final = Event("versions.kept", "the cache could not be pruned: %(error)s")

EVENTS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Event))
"""All of them, in the order in which they stand above."""

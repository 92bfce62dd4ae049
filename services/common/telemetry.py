"""Names of metrics and labels, and the buckets of histograms: the one place they are written, for the services that expose them and
for the dashboards, rules and alerts that read them.

Where OpenTelemetry's GenAI conventions name a measurement, its Prometheus form is used (`gen_ai.server.time_to_first_token` becomes
`gen_ai_server_time_to_first_token_seconds`). Those conventions are still in development: a renaming is a change to this module alone.
Labels are bounded by configuration (services, revisions of the routing table, arms, outcomes): never a user, a key, or a model name as
a client wrote it.
"""

from __future__ import annotations

from typing import Final

# Labels
SERVICE: Final = "service"
REVISION: Final = "revision"
ARM: Final = "arm"
OUTCOME: Final = "outcome"
KIND: Final = "kind"
"""`live` or `mirror`."""
REASON: Final = "reason"
FILTER: Final = "filter"
ACTION: Final = "action"
"""`block` or `redact`."""
TEXT: Final = "text"
"""`prompt` or `answer`."""
DIRECTION: Final = "direction"
"""`input` or `output`."""

# One attempt of one engine at one request
TIME_TO_FIRST_TOKEN: Final = "gen_ai_server_time_to_first_token_seconds"  # noqa: S105
TIME_PER_OUTPUT_TOKEN: Final = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105
REQUEST_DURATION: Final = "gen_ai_server_request_duration_seconds"
TOKENS: Final = "understudy_gateway_tokens_total"
REQUESTS: Final = "understudy_gateway_requests_total"

# The gateway itself
REFUSED: Final = "understudy_gateway_refused_requests_total"
IN_FLIGHT: Final = "understudy_gateway_requests_in_flight"
HELD: Final = "understudy_gateway_held_requests"
FILTERED: Final = "understudy_gateway_content_filter_effects_total"
FALLBACKS: Final = "understudy_gateway_fallbacks_total"
EJECTIONS: Final = "understudy_gateway_ejections_total"
HEAVY_UNITS: Final = "understudy_gateway_heavy_units"
MIRROR_DROPPED: Final = "understudy_gateway_mirror_dropped_total"
FEEDBACK: Final = "understudy_gateway_feedback_total"
STORE_CONTACT_AGE: Final = "understudy_gateway_store_contact_age_seconds"
LEASE_VALID: Final = "understudy_gateway_lease_valid"

# The recorder
RECORDS: Final = "understudy_recorder_records_total"
RECORDS_QUEUED: Final = "understudy_recorder_queued_records"
RECORDS_SPILLED: Final = "understudy_recorder_spilled_records_total"
RECORDS_DROPPED: Final = "understudy_recorder_dropped_records_total"
JOURNAL_BYTES: Final = "understudy_recorder_journal_bytes"

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0,
)  # fmt: skip
"""Buckets, in seconds, of first tokens and whole answers: 1 ms to 120 s."""

GAP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 1.6, 5.0)
"""Buckets, in seconds, of the time between two tokens."""

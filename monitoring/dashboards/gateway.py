"""Gateway: the gateways' own state, the recorder's, and the controller's."""

from __future__ import annotations

from monitoring.panels import NAMESPACE, SERVICE, Dashboard, Panel, Query, Row, Variable, graph, quantiles, rate
from services.common import telemetry as t

_POD = "{{instance}}"


def _own(metric: str) -> str:
    """Of our own processes alone: every exporter has these."""
    gateways, controllers = f"{t.LEASE_VALID}{{{NAMESPACE}}}", f"{t.LOOK_DURATION}_count{{{NAMESPACE}}}"
    return f"{metric} and on (namespace, job, instance) ({gateways} or {controllers})"


LOAD = Row("Load", (
    graph("Requests being answered", "At this moment, by gateway.", Query(f"{t.IN_FLIGHT}{{{NAMESPACE}}}", _POD)),
    graph("Attempts", "Attempts of engines each second, live and mirrored.", Query(rate(t.REQUESTS, NAMESPACE, "instance, kind"),
          "{{instance}} {{kind}}"), unit="reqps"),
    graph("Refused requests", "Requests that reached no engine, by the error's code.",
          Query(rate(t.REFUSED, NAMESPACE, "reason"), "{{reason}}"), unit="reqps"),
    graph("CPU", "Cores used; one gateway process uses one at most.",
          Query(_own(f"rate(process_cpu_seconds_total{{{NAMESPACE}}}[$__rate_interval])"), _POD)),
    graph("Memory", "Resident memory.", Query(_own(f"process_resident_memory_bytes{{{NAMESPACE}}}"), _POD), unit="bytes"),
    graph("Open files", "Connections are files.", Query(_own(f"process_open_fds{{{NAMESPACE}}}"), _POD)),
))  # fmt: skip

STORE = Row("Store", (
    graph("Since the store was reached", "Beyond the lease (120 s) candidates get no requests from this gateway.",
          Query(f"{t.STORE_CONTACT_AGE}{{{NAMESPACE}}}", _POD), unit="s"),
    graph("Lease", "1 while candidates may get requests.", Query(f"{t.LEASE_VALID}{{{NAMESPACE}}}", _POD), top=1.0),
    graph("Users left out", "Users with so large a share of the traffic that they would decide a rollout alone.",
          Query(f"{t.HEAVY_UNITS}{{{NAMESPACE}}}", _POD)),
    graph("Records", "Rows recorded each second.", Query(f"rate({t.RECORDS}{{{NAMESPACE}}}[$__rate_interval])", _POD)),
    graph("Waiting for the store", "Records in memory that the store does not have.", Query(f"{t.RECORDS_QUEUED}{{{NAMESPACE}}}", _POD)),
    graph("Lag", "Age of the oldest record that the store does not have; evidence waits for the slowest gateway.",
          Query(f"{t.RECORDER_LAG}{{{NAMESPACE}}}", _POD), unit="s"),
    graph("Spilled", "Records each second that wait on disk alone.",
          Query(f"rate({t.RECORDS_SPILLED}{{{NAMESPACE}}}[$__rate_interval])", _POD)),
    graph("Lost", "Records lost for good.", Query(f"increase({t.RECORDS_DROPPED}{{{NAMESPACE}}}[$__rate_interval])", _POD)),
    graph("Journal", "Share of the journal's bound that is used.",
          Query(f"{t.JOURNAL_BYTES}{{{NAMESPACE}}} / {t.JOURNAL_LIMIT}{{{NAMESPACE}}}", _POD), unit="percentunit", top=1.0),
))  # fmt: skip

TRACES = Row("Traces", (
    graph("Spans exported", "That a collector took, each second; 0 where tracing is off.",
          Query(f"rate({t.SPANS_EXPORTED}{{{NAMESPACE}}}[$__rate_interval])", _POD)),
    graph("Spans lost", "The queue was full, or the collector refused them or was away for half a minute. No request waits for it.",
          Query(f"increase({t.SPANS_DROPPED}{{{NAMESPACE}}}[$__rate_interval])", _POD)),
))  # fmt: skip

CONTROLLER = Row("Controller", (
    graph("Looks", "Looks at services each second.", Query(rate(t.LOOKS, SERVICE, "result"), "{{result}}"), width=6),
    graph("Time of a look", "How long looks take.", *quantiles(t.LOOK_DURATION, NAMESPACE, "namespace", "", 0.5, 0.99), unit="s", width=6),
    graph("Since the last look", "By service; the second line is the pause until the next.",
          Query(f"timestamp({t.LAST_LOOK}{{{SERVICE}}}) - {t.LAST_LOOK}{{{SERVICE}}}", "{{service}}"),
          Query(f"{t.LOOK_INTERVAL}{{{SERVICE}}}", "{{service}} pause"),
          unit="s", width=6),
    graph("Calls of the platform", "By call and how they ended.",
          Query(rate(t.PLATFORM_CALLS, NAMESPACE, "call, result"), "{{call}} {{result}}"), width=6),
    graph("Time of a platform's call", "99th percentile and median.",
          *quantiles(t.PLATFORM_DURATION, NAMESPACE, "call", "{{call}}", 0.5, 0.99), unit="s", width=8),
    Panel("Conditions that do not hold", "By service, while they do not; the reason says why.",
          (Query(f"{t.CONDITION}{{{SERVICE}}} == 0", "{{service}} {{type}}: {{reason}}"),), kind="states"),
    graph("Webhook's certificate", "Time until it ends; cert-manager replaces its own, the chart's lasts ten years.",
          Query(f"{t.CERTIFICATE_END}{{{NAMESPACE}}} - time()", _POD), unit="s", width=8),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-gateway", "Understudy / Gateway", "Gateways, their recorders, and the controller.",
    (LOAD, STORE, TRACES, CONTROLLER),
    (Variable("namespace", f"label_values({t.IN_FLIGHT}, namespace)"), Variable("service", f"label_values({t.LAST_LOOK}, service)")),
)  # fmt: skip

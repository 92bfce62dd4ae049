"""Engine: vLLM, Ray Serve and GPUs, by revision.

Ray exports vLLM's metrics under its own prefix, on each pod's port 8080, histograms with their buckets alone: a `_sum` is made of the
buckets' middles, so nothing here divides by it; the scraping (chart, docs/monitoring.md) puts `service` and
`revision` on them. GPUs are seen by DCGM's exporter, which knows the pods.
"""

from __future__ import annotations

from monitoring.panels import NAMESPACE, REVISION, SERVICE, Dashboard, Query, Row, Variable, graph, quantiles, rate

_BY = "service, revision"
_NAME = "{{revision}}"
_NODE = "{{instance}}"
_ASKED = "ray_vllm_prefix_cache_queries_total"
_QUEUE = "ray_vllm_request_queue_time_seconds"
_SHORT = f'{REVISION},le="0.3"'


def _some(counter: str, always: str) -> str:
    """A counter's events each second; 0 where `always` counts and it has not begun: Ray exports no counter before its first event."""
    return f"{rate(counter, REVISION, _BY)} or 0 * {rate(always, REVISION, _BY)}"


def _now(metric: str, how: str = "sum") -> str:
    return f"{how} by ({_BY}) ({metric}{{{REVISION}}})"


VLLM = Row("vLLM", (
    graph("Requests", "Running in batches, and waiting inside the engine.",
          Query(_now("ray_vllm_num_requests_running"), f"{_NAME} running"),
          Query(_now("ray_vllm_num_requests_waiting"), f"{_NAME} waiting")),
    graph("KV cache", "Share in use, the fullest replica. Near 1 requests wait, or are preempted.",
          Query(_now("ray_vllm_kv_cache_usage_perc", "max"), _NAME), unit="percentunit", top=1.0),
    graph("Preemptions", "Requests each second that lost their place in the cache and are computed again.",
          Query(_some("ray_vllm_num_preemptions_total", "ray_vllm_prompt_tokens_total"), _NAME)),
    graph("Prefix cache hits", "Share of the prompts' tokens that were in the cache.",
          Query(f"({_some('ray_vllm_prefix_cache_hits_total', _ASKED)}) / {rate(_ASKED, REVISION, _BY)}", _NAME),
          unit="percentunit", top=1.0),
    graph("Long waits in the engine's queue", "Share of requests that were in no batch for more than 0.3 s, vLLM's smallest bucket.",
          Query(f"1 - {rate(f'{_QUEUE}_bucket', _SHORT, _BY)} / {rate(f'{_QUEUE}_count', REVISION, _BY)}", _NAME),
          unit="percentunit", top=1.0),
    graph("First token, as the engine sees it", "Compare with the gateway's: what is more there is Ray's and the network's.",
          *quantiles("ray_vllm_time_to_first_token_seconds", REVISION, _BY, _NAME, 0.5, 0.95), unit="s"),
    graph("Tokens", "Tokens each second, prompts and answers.",
          Query(rate("ray_vllm_prompt_tokens_total", REVISION, _BY), f"{_NAME} prompts"),
          Query(rate("ray_vllm_generation_tokens_total", REVISION, _BY), f"{_NAME} answers")),
    graph("Time between tokens, as the engine sees it", "Gaps while an answer is decoded; vLLM's smallest bucket ends at 10 ms.",
          *quantiles("ray_vllm_inter_token_latency_seconds", REVISION, _BY, _NAME, 0.5, 0.95), unit="s"),
    graph("Ended requests", "By why they ended: `stop`, `length`, `abort`.",
          Query(rate("ray_vllm_request_success_total", REVISION, "revision, finished_reason"), f"{_NAME} {{{{finished_reason}}}}"),
          unit="reqps"),
))  # fmt: skip

RAY = Row("Ray", (
    graph("Healthy replicas", "By application and deployment.",
          Query(f"sum by (application, deployment) (ray_serve_deployment_replica_healthy{{{NAMESPACE}}})",
                "{{application}} {{deployment}}")),
    graph("Queued in Ray Serve", "Requests that no replica has taken.",
          Query(f"sum by (application, deployment) (ray_serve_deployment_queued_queries{{{NAMESPACE}}})",
                "{{application}} {{deployment}}")),
    graph("Ongoing in replicas", "What the autoscaler goes by.",
          Query(f"sum by (application, deployment) (ray_serve_replica_processing_queries{{{NAMESPACE}}})",
                "{{application}} {{deployment}}")),
    graph("CPU of nodes", "Percent used.", Query(f"ray_node_cpu_utilization{{{NAMESPACE}}}", _NODE), unit="percent", top=100.0),
    graph("Memory of nodes", "Share used.",
          Query(f"ray_node_mem_used{{{NAMESPACE}}} / ray_node_mem_total{{{NAMESPACE}}}", _NODE), unit="percentunit", top=1.0),
    graph("Disk of nodes", "Free bytes.", Query(f"ray_node_disk_free{{{NAMESPACE}}}", _NODE), unit="bytes"),
))  # fmt: skip

GPU = Row("GPUs (DCGM exporter)", (
    graph("Use", "Percent of time in which a kernel ran.", Query(f"DCGM_FI_DEV_GPU_UTIL{{{NAMESPACE}}}", "{{Hostname}} {{gpu}}"),
          unit="percent", top=100.0),
    graph("Memory", "Used of all.",
          Query(f"DCGM_FI_DEV_FB_USED{{{NAMESPACE}}} / (DCGM_FI_DEV_FB_USED{{{NAMESPACE}}} + DCGM_FI_DEV_FB_FREE{{{NAMESPACE}}})",
                "{{Hostname}} {{gpu}}"), unit="percentunit", top=1.0),
    graph("Power", "Watts.", Query(f"DCGM_FI_DEV_POWER_USAGE{{{NAMESPACE}}}", "{{Hostname}} {{gpu}}"), unit="watt"),
    graph("Temperature", "Degrees; throttling begins at about 85.", Query(f"DCGM_FI_DEV_GPU_TEMP{{{NAMESPACE}}}", "{{Hostname}} {{gpu}}"),
          unit="celsius", width=12),
    graph("Xid", "The last fault that the driver reported; 0: none.",
          Query(f"DCGM_FI_DEV_XID_ERRORS{{{NAMESPACE}}}", "{{Hostname}} {{gpu}}"),
          width=12),
))  # fmt: skip

DASHBOARD = Dashboard(
    "understudy-engine", "Understudy / Engine", "What happens inside the engines: vLLM, Ray, GPUs.",
    (VLLM, RAY, GPU),
    (
        Variable("namespace", "label_values(ray_vllm_num_requests_running, namespace)"),
        Variable("service", 'label_values(ray_vllm_num_requests_running{namespace=~"$namespace"}, service)'),
        Variable("revision", f"label_values(ray_vllm_num_requests_running{{{SERVICE}}}, revision)"),
    ),
)  # fmt: skip

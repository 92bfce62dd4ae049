"""Prometheus on one machine: its configuration, for `understudy serve` where the program is on the PATH, and for those who run their own.

Engines export what vLLM and Ray Serve measure under names of their own; the labels `service` and `revision` are put on here, as the chart's
PodMonitor does. Must not start anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

REVISION: Final = r"(.+)-v[0-9]+-[0-9a-z]+"
"""A revision's name; its group is the service's."""
ENGINE_LABELS: Final[tuple[dict[str, Any], ...]] = (
    # vLLM names the model, Ray Serve the application: both are the revision. A pod's own label comes first.
    {"source_labels": ["revision", "model_name"], "regex": ";(.+)", "target_label": "revision"},
    {"source_labels": ["revision", "application"], "regex": ";(.+)", "target_label": "revision"},
    {"source_labels": ["service", "revision"], "regex": f";{REVISION}", "target_label": "service"},
)
"""Relabelling of what engines export, in Prometheus' own words."""


def configuration(
    gateways: Sequence[str],
    controllers: Sequence[str],
    *,
    engines: Sequence[str] = (),
    discovery: Path | None = None,
    rules: Sequence[Path] = (),
    interval: str = "5s",
) -> dict[str, Any]:
    """Prometheus' configuration. Targets are `host:port`; `discovery`: the file in which Ray lists its own targets."""
    engine: dict[str, Any] = {"job_name": "engine", "metric_relabel_configs": [dict(one) for one in ENGINE_LABELS]}
    if engines:
        engine["static_configs"] = [{"targets": list(engines)}]
    if discovery is not None:
        engine["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "10s"}]
        # Ray says `job: ray` of its targets.
        engine["relabel_configs"] = [{"target_label": "job", "replacement": "engine"}]
    found: dict[str, Any] = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": [
            {"job_name": "gateway", "static_configs": [{"targets": list(gateways)}]},
            {"job_name": "controller", "static_configs": [{"targets": list(controllers)}]},
        ],
    }
    if engines or discovery is not None:
        found["scrape_configs"].append(engine)
    if rules:
        found["rule_files"] = [str(path) for path in rules]
    return found

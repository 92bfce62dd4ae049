"""From a revision to a Ray Serve application, as the declarative config (`PUT /api/serve/applications/`) wants it.

Pure. Platforms call it; Ray is not imported here. The application is Ray's own builder, `ray.serve.llm:build_openai_app`, so the
stock Ray LLM image serves it and no code of this project runs beside the engine.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.serving.adapters import adapters_folder
from services.serving.engine_plugin import ADAPTERS
from services.serving.errors import InvalidEngineSpec

BUILDER = "ray.serve.llm:build_openai_app"

ENGINE = "LLMServer:"
"""The builder's name for the deployment that holds the engine, without the model's. The router beside it has none."""

# The share of `max_ongoing_requests` at which the autoscaler adds a replica: above it requests begin to queue in the engine.
_SCALE_AT = 0.7

# These belong to the platform: the model's place and name come from the revision.
_RESERVED_ENGINE_ARGUMENTS = frozenset({"model", "served_model_name"})

# Names become parts of URLs, of Ray's deployment names and of log files.
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How one revision runs.

    `arguments` are vLLM's engine arguments. `resources` are reserved for each engine worker (one worker per tensor-parallel and
    pipeline-parallel rank) and include what the replica itself needs. Serve's autoscaler keeps the replicas from `min_replicas` (0: an
    idle engine goes, and the next request brings it back) to `max_replicas`; `autoscaling` has further settings of it, under its own names.
    """

    arguments: Mapping[str, Any]
    resources: Mapping[str, float]
    min_replicas: int = 1
    max_replicas: int = 1
    max_ongoing_requests: int = 64
    autoscaling: Mapping[str, float] = field(default_factory=dict)


def route_prefix(service: str, name: str) -> str:
    """The path under which a revision is served; from it `owner_of` reads the service back."""
    return f"/{service}/{name}"


def owner_of(prefix: str | None) -> tuple[str, str] | None:
    """(service, revision) of a route prefix made by `route_prefix`, or None for applications of others."""
    parts = (prefix or "").split("/")
    if len(parts) == 3 and parts[0] == "" and _NAME.fullmatch(parts[1]) and _NAME.fullmatch(parts[2]):
        return parts[1], parts[2]
    return None


def serve_application(name: str, service: str, artifact: str, spec: EngineSpec) -> dict[str, Any]:
    """One entry of the config's `applications`; `name` is also the model's name on the wire.

    Raises InvalidEngineSpec.
    """
    _check(name, service, spec)
    workers = _positive(spec, "tensor_parallel_size") * _positive(spec, "pipeline_parallel_size")
    llm_config = {
        "model_loading_config": {"model_id": name, "model_source": artifact},
        # Without a kind Ray takes every engine for a GPU's, and a replica waits for one for ever.
        "accelerator_config": {"kind": "gpu" if spec.resources.get("GPU", 0) > 0 else "cpu"},
        "placement_group_config": {"bundles": [dict(spec.resources) for _ in range(workers)]},
        # Ray's default holds streamed tokens back for 50 ms.
        "experimental_configs": {"stream_batching_interval_ms": 0},
        "log_engine_metrics": not spec.arguments.get("disable_log_stats", False),
        "engine_kwargs": dict(spec.arguments),
        "deployment_config": {
            "max_ongoing_requests": spec.max_ongoing_requests,
            # The bundle above is all that a replica reserves; the default would add a whole core to it.
            "ray_actor_options": {"num_cpus": 0},
            # An engine that cannot read its model will not learn to; each further attempt costs a minute.
            "max_constructor_retry_count": 1,
        },
    }
    variables = _tracing_variables(name, service, spec)
    if spec.arguments.get("enable_lora"):
        variables[ADAPTERS] = str(adapters_folder(Path(artifact).parent, service, name))
    if variables:
        llm_config["runtime_env"] = {"env_vars": variables}
    return {
        "name": name,
        "route_prefix": route_prefix(service, name),
        "import_path": BUILDER,
        "args": {"llm_configs": [llm_config]},
        # Not among the arguments: Serve starts every replica anew when these change.
        "deployments": [{"name": f"{ENGINE}{name}", "autoscaling_config": _scaling(spec)}],
    }


def scaled(application: Mapping[str, Any], replicas: tuple[int, int]) -> dict[str, Any]:
    """The application with other bounds of its engine's replicas; running ones stay."""
    changed = copy.deepcopy(dict(application))
    for deployment in changed.get("deployments", ()):
        if deployment["name"].startswith(ENGINE):
            deployment["autoscaling_config"].update(min_replicas=replicas[0], max_replicas=replicas[1])
    return changed


def bounds_of(application: Mapping[str, Any]) -> tuple[int, int] | None:
    """Fewest and most replicas of the engine; None for an application that was not made here."""
    for deployment in application.get("deployments", ()):
        scaling = deployment.get("autoscaling_config") or {}
        if deployment["name"].startswith(ENGINE) and {"min_replicas", "max_replicas"} <= scaling.keys():
            return scaling["min_replicas"], scaling["max_replicas"]
    return None


def _tracing_variables(name: str, service: str, spec: EngineSpec) -> dict[str, str]:
    """What vLLM's argument `otlp_traces_endpoint` needs beside it. Only requests of which the gateway says so are traced: without the
    sampler, vLLM would begin a trace of its own for every request that names none.
    """
    endpoint = spec.arguments.get("otlp_traces_endpoint")
    if not endpoint:
        return {}
    if spec.arguments.get("disable_log_stats"):
        raise InvalidEngineSpec(
            "otlp_traces_endpoint needs vLLM's statistics: remove disable_log_stats, or it dies of the first request"
        )
    variables = {
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_SERVICE_NAME": "understudy-engine",
        "OTEL_RESOURCE_ATTRIBUTES": f"understudy.service={service},understudy.revision={name}",
    }
    if str(endpoint).startswith(("http://", "https://")) and urlsplit(str(endpoint)).path:
        variables["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"  # vLLM's own default is gRPC
    return variables


def _scaling(spec: EngineSpec) -> dict[str, Any]:
    return {
        "min_replicas": spec.min_replicas,
        "max_replicas": spec.max_replicas,
        "target_ongoing_requests": max(1, round(_SCALE_AT * spec.max_ongoing_requests)),
        **spec.autoscaling,
    }


def _check(name: str, service: str, spec: EngineSpec) -> None:
    for what, value in (("revision", name), ("service", service)):
        if not _NAME.fullmatch(value):
            raise InvalidEngineSpec(
                f"{what} name {value!r} is not usable in a URL: use at most 63 of a-z, 0-9 and '-', not at either end"
            )
    taken = sorted(_RESERVED_ENGINE_ARGUMENTS & spec.arguments.keys())
    if taken:
        raise InvalidEngineSpec(f"engine arguments {taken} are set by the platform: remove them")
    if not any(spec.resources.get(kind, 0) > 0 for kind in ("CPU", "GPU")):
        raise InvalidEngineSpec('resources need "CPU" or "GPU" above 0')
    if spec.min_replicas < 0 or spec.max_replicas < max(1, spec.min_replicas):
        raise InvalidEngineSpec(
            f"replicas must satisfy 0 <= min <= max and 1 <= max, got {spec.min_replicas} and {spec.max_replicas}"
        )
    if spec.max_ongoing_requests < 1:
        raise InvalidEngineSpec(f"max_ongoing_requests must be at least 1, got {spec.max_ongoing_requests}")


def _positive(spec: EngineSpec, argument: str) -> int:
    value = spec.arguments.get(argument, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidEngineSpec(f"engine argument {argument} must be a whole number above 0, got {value!r}")
    return value

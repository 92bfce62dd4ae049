"""Revisions as Ray Serve applications."""

from typing import Any

import pytest

from services.serving.application import EngineSpec, bounds_of, owner_of, route_prefix, scaled, serve_application
from services.serving.errors import InvalidEngineSpec


def engine(**changes: Any) -> EngineSpec:
    return EngineSpec(**{"arguments": {"dtype": "float32"}, "resources": {"CPU": 0.5}, **changes})


def config(spec: EngineSpec) -> dict[str, Any]:
    application = serve_application("assistant-v4-7c1f", "assistant", "/models/four", spec)
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (llm_config,) = application["args"]["llm_configs"]
    assert isinstance(llm_config, dict)
    return llm_config


def test_a_cpu_revision() -> None:
    llm_config = config(engine())
    assert llm_config["model_loading_config"] == {"model_id": "assistant-v4-7c1f", "model_source": "/models/four"}
    assert llm_config["accelerator_config"] == {"kind": "cpu"}
    assert llm_config["placement_group_config"] == {"bundles": [{"CPU": 0.5}]}
    assert "autoscaling_config" not in llm_config["deployment_config"]


def test_a_gpu_revision_reserves_one_bundle_a_rank() -> None:
    arguments = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    llm_config = config(engine(arguments=arguments, resources={"GPU": 1, "CPU": 1}))
    assert llm_config["accelerator_config"] == {"kind": "gpu"}
    assert llm_config["placement_group_config"]["bundles"] == [{"GPU": 1, "CPU": 1}] * 4


def test_one_argument_lets_the_engine_trace() -> None:
    arguments = {"otlp_traces_endpoint": "http://collector:4318/v1/traces"}
    llm_config = config(engine(arguments=arguments))
    assert llm_config["engine_kwargs"] == arguments
    variables = llm_config["runtime_env"]["env_vars"]
    assert variables["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert variables["OTEL_TRACES_SAMPLER"] == "parentbased_always_off"
    assert "understudy.revision=assistant-v4-7c1f" in variables["OTEL_RESOURCE_ATTRIBUTES"]
    grpc = config(engine(arguments={"otlp_traces_endpoint": "http://collector:4317"}))
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" not in grpc["runtime_env"]["env_vars"]
    with pytest.raises(InvalidEngineSpec, match="disable_log_stats"):
        config(engine(arguments=arguments | {"disable_log_stats": True}))


def made(spec: EngineSpec) -> dict[str, Any]:
    return serve_application("assistant-v4-7c1f", "assistant", "/models/four", spec)


def scaling_of(application: dict[str, Any]) -> dict[str, Any]:
    (deployment,) = application["deployments"]
    assert deployment["name"] == "LLMServer:assistant-v4-7c1f"
    assert isinstance(deployment["autoscaling_config"], dict)
    return deployment["autoscaling_config"]


def test_the_autoscaler_gets_its_bounds_and_pace() -> None:
    scaling = scaling_of(made(engine(min_replicas=2, max_replicas=5, max_ongoing_requests=10)))
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 7)
    pace = {"target_ongoing_requests": 3, "upscale_delay_s": 5.0}
    scaling = scaling_of(made(engine(max_replicas=5, autoscaling=pace)))
    assert (scaling["target_ongoing_requests"], scaling["upscale_delay_s"]) == (3, 5.0)


def test_other_bounds_change_nothing_that_serve_starts_anew_for() -> None:
    before = made(engine(max_replicas=5))
    after = scaled(before, (0, 5))
    assert (bounds_of(before), bounds_of(after)) == ((1, 5), (0, 5))
    assert after == made(engine(min_replicas=0, max_replicas=5))
    assert {key for key in before if before[key] != after[key]} == {"deployments"}
    assert bounds_of({"name": "theirs", "import_path": "their.module:app"}) is None


def test_ray_reads_engine_metrics_only_where_the_engine_keeps_them() -> None:
    assert config(engine())["log_engine_metrics"] is True
    assert config(engine(arguments={"disable_log_stats": True}))["log_engine_metrics"] is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": {"model": "x"}}, "model"),
        ({"arguments": {"tensor_parallel_size": 0}}, "tensor_parallel_size"),
        ({"arguments": {"tensor_parallel_size": True}}, "tensor_parallel_size"),
        ({"resources": {}}, "resources"),
        ({"resources": {"CPU": 0}}, "resources"),
        ({"min_replicas": -1}, "replicas"),
        ({"min_replicas": 0, "max_replicas": 0}, "replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "replicas"),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests"),
    ],
)
def test_contradictory_specifications_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidEngineSpec, match=words):
        config(engine(**changes))


@pytest.mark.parametrize("name", ["", "Assistant", "a/b", "a b", "-a", "a-", "a" * 64, "../x"])
def test_names_that_do_not_fit_a_url_are_refused(name: str) -> None:
    with pytest.raises(InvalidEngineSpec, match="name"):
        serve_application(name, "assistant", "/models/four", engine())
    with pytest.raises(InvalidEngineSpec, match="name"):
        serve_application("assistant-v4", name, "/models/four", engine())


def test_the_owner_is_read_back_from_the_route() -> None:
    assert owner_of(route_prefix("assistant", "assistant-v4-7c1f")) == ("assistant", "assistant-v4-7c1f")
    assert [owner_of(prefix) for prefix in (None, "/", "/theirs", "/a/b/c", "/A/b", "a/b")] == [None] * 6

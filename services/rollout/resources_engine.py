"""The `engine` part of the `LLMService` resource: how a version's weights are made servable. See `resources`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from services.rollout.durations import Duration, Lasting
from services.rollout.resources_base import OPEN, Label, Resource, cel, keyed

Quantity = Annotated[
    str, StringConstraints(pattern=r"^[1-9][0-9]{0,14}(\.[0-9]{1,3})?([kMGT]|[KMGT]i)?$", max_length=24)
]
"""Bytes as Kubernetes writes them: 512Mi, 16Gi."""

_UNITS: Final[dict[str, int]] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 1024**power for power, letter in enumerate("KMGT", start=1)
}


def quantity_bytes(text: str) -> float:
    """Bytes of a `Quantity`."""
    number = text.rstrip("kKMGTi")
    return float(number) * _UNITS[text[len(number) :]]


class Resources(Resource):
    """What one worker of the engine takes: there is one for each tensor- and pipeline-parallel rank."""

    cpu: float = Field(default=1.0, ge=0, le=10_000, description="CPU cores that one worker claims.")
    memory: Quantity | None = Field(
        default=None, description="Memory that one worker claims, e.g. 16Gi; none: the platform's default."
    )
    gpu: float = Field(
        default=0.0, ge=0, le=1_000, description="GPUs that one worker claims (nvidia.com/gpu on platform kuberay)."
    )


class Autoscaling(Resource):
    """Bounds and pace of the engine's autoscaling. A change of `min`, `max` and `targetTtft` counts at once, of the rest from the engine's
    next start."""

    model_config = cel(("self.min <= self.max", "min is greater than max", "min"))

    min: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Fewest replicas. 0: an engine that nobody asks for during downscaleDelay ends, and the next request waits for its "
        "start; while a rollout lasts, one runs all the same.",
    )
    max: int = Field(default=1, ge=1, le=1000, description="Most replicas.")
    target_ongoing_requests: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Requests under way at once in one replica that autoscaling aims at; default: 0.7 of maxOngoingRequests.",
    )
    target_ttft: Lasting | None = Field(
        default=None,
        description="Time to the first token (95th percentile of stable's streamed requests, 20 or more within upscaleDelay) above which a "
        "replica is added, up to max; below half of it for downscaleDelay, one goes, down to min. Beside targetOngoingRequests.",
    )
    upscale_delay: Duration = Field(default=30.0, ge=0, description="Time above the target before replicas are added.")
    downscale_delay: Duration = Field(
        default=600.0, ge=0, description="Time below the target before replicas are removed."
    )
    held_requests: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="With min 0: requests that wait in one gateway while an engine starts; more are refused with `engine_starting`.",
    )
    hold_timeout: Lasting = Field(
        default=300.0, description="With min 0: time a request waits for an engine to start before it is refused."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class Lora(Resource):
    """Adapters that the engine serves beside its base. They are versions of kind `adapter`, and start no pods."""

    max_adapters: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Adapters in use at once (vLLM's max_loras): stable's and a candidate's are two. Each takes memory of its own.",
    )
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="Highest rank of an adapter (vLLM's max_lora_rank); memory is taken for it in any case."
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """vLLM's engine arguments."""
        return {"enable_lora": True, "max_loras": self.max_adapters, "max_lora_rank": self.max_rank}


class LocalReference(Resource):
    """Something in the resource's namespace, by name."""

    name: str = Field(min_length=1, max_length=253, description="Its name.")


class Toleration(Resource):
    """As in a pod."""

    key: str | None = Field(default=None, max_length=316, description="The taint's key; none: every taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How `value` is compared.")
    value: str | None = Field(default=None, max_length=63, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; none: every effect."
    )
    toleration_seconds: int | None = Field(default=None, description="For NoExecute: seconds until eviction.")


class KeyReference(Resource):
    """A key of a Secret or ConfigMap in the resource's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the Secret or ConfigMap.")
    key: str = Field(min_length=1, max_length=253, description="Key in it.")
    optional: bool = Field(default=False, description="Whether it may be missing.")


class FieldReference(Resource):
    """A field of the pod."""

    field_path: str = Field(max_length=512, description="For example metadata.name or status.hostIP.")


class VariableSource(Resource):
    """Where a variable's value comes from."""

    model_config = cel(
        (
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(given, given)",
            "name one of secretKeyRef, configMapKeyRef and fieldRef",
            "",
        )
    )

    secret_key_ref: KeyReference | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeyReference | None = Field(default=None, description="A key of a ConfigMap.")
    field_ref: FieldReference | None = Field(default=None, description="A field of the pod.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(source is not None for source in (self.secret_key_ref, self.config_map_key_ref, self.field_ref)) != 1:
            raise ValueError("name one of secretKeyRef, configMapKeyRef and fieldRef")
        return self


class Variable(Resource):
    """An environment variable of the engine's containers."""

    model_config = cel(("!(has(self.value) && has(self.valueFrom))", "value and valueFrom exclude each other", "value"))

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253, description="The variable's name.")
    value: str | None = Field(default=None, max_length=16_384, description="Its value.")
    value_from: VariableSource | None = Field(default=None, description="Where its value comes from.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("value and valueFrom exclude each other")
        return self


class Volume(Resource):
    """A volume of the engine's pods; all but its name is passed on untouched."""

    model_config = ConfigDict(extra="allow", json_schema_extra=OPEN)

    name: Label = Field(description="The volume's name; mounts refer to it.")


class VolumeMount(Resource):
    """As in a container."""

    name: Label = Field(description="Name of the volume.")
    mount_path: str = Field(pattern=r"^/[^:]*$", max_length=1024, description="Where it appears in the container.")
    sub_path: str | None = Field(default=None, max_length=1024, description="Folder within the volume.")
    read_only: bool = Field(default=False, description="Whether it may not be written.")


class ArtifactCache(Resource):
    """Where versions' files are kept between pods, under their digests."""

    model_config = cel(("has(self.hostPath) != has(self.claim)", "name one of hostPath and claim", ""))

    host_path: str | None = Field(
        default=None, pattern=r"^/[^:]+$", max_length=1024, description="Folder of the node, shared by its pods."
    )
    claim: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="PersistentVolumeClaim; ReadWriteMany where several nodes run engines.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.host_path is None) == (self.claim is None):
            raise ValueError("name one of hostPath and claim")
        return self


class PasswordSecret(Resource):
    """A password in a Secret of the resource's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the Secret.")
    key: str = Field(default="password", min_length=1, max_length=253, description="Key in it.")


class HeadFaultTolerance(Resource):
    """Keeps Ray's cluster state in Redis, so that engines serve on while the head starts again."""

    redis_address: str = Field(
        pattern=r"^[^\s/]+:[0-9]+$", max_length=300, description="Host and port, e.g. redis.models.svc:6379."
    )
    password_secret: PasswordSecret | None = Field(default=None, description="Redis' password; none: it asks for none.")


class Engine(Resource):
    """How a version of weights is made servable. A change here is a new revision and is rolled out as one; of `autoscaling` and
    `startTimeout` it is not.
    """

    model_config = cel(
        (
            "!has(self.autoscaling.targetOngoingRequests) || self.autoscaling.targetOngoingRequests <= self.maxOngoingRequests",
            "autoscaling.targetOngoingRequests is greater than maxOngoingRequests, which caps it",
            "autoscaling",
        ),
        (
            "!has(self.ranksPerPod) || (self.tensorParallelSize * self.pipelineParallelSize) % self.ranksPerPod == 0",
            "ranksPerPod must divide tensorParallelSize times pipelineParallelSize",
            "ranksPerPod",
        ),
        (
            "self.platform != 'kuberay' || double(int(self.resources.gpu)) == self.resources.gpu",
            "resources.gpu must be a whole number on platform kuberay",
            "resources",
        ),
        (
            "self.resources.cpu > 0.0 || self.resources.gpu > 0.0",
            "resources.cpu or resources.gpu must be above 0",
            "resources",
        ),
        (
            "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
            "volumeMounts name a volume that is not among volumes",
            "volumeMounts",
        ),
    )

    platform: Literal["serve", "kuberay"] = Field(
        default="serve",
        description="`serve`: an application on a running Ray cluster. `kuberay`: a RayService, with pods of its own.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        max_length=200,
        json_schema_extra=OPEN,
        description="vLLM's engine arguments, passed on untouched.",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, le=1024, description="Workers over which each layer is split (vLLM's tensor_parallel_size)."
    )
    pipeline_parallel_size: int = Field(
        default=1, ge=1, le=1024, description="Groups of workers over which the layers are split, e.g. nodes."
    )
    ranks_per_pod: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Workers that share a pod, and so a node; default: tensorParallelSize, whose workers talk at every layer.",
    )
    lora: Lora | None = Field(
        default=None, description="LoRA adapters that the engine may serve; none: versions of kind adapter are refused."
    )
    resources: Resources = Field(default_factory=Resources, description="What one worker of the engine takes.")
    autoscaling: Autoscaling = Field(default_factory=Autoscaling, description="Bounds and pace of autoscaling.")
    max_ongoing_requests: int = Field(
        default=64, ge=1, le=100_000, description="Requests under way at once in one replica; more wait in a queue."
    )
    start_timeout: Lasting = Field(
        default=900.0, description="Time an engine may take to become ready before its rollout aborts."
    )
    image: str | None = Field(
        default=None, min_length=1, max_length=500, description="Image of the engine; none: the controller's default."
    )
    image_pull_secrets: tuple[LocalReference, ...] = Field(
        default=(),
        max_length=10,
        json_schema_extra=keyed("name"),
        description="Secrets that open the image's registry.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=50, description="Labels that a worker's node must have."
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(), max_length=50, description="Taints of nodes that workers stand."
    )
    affinity: dict[str, Any] = Field(
        default_factory=dict, max_length=3, json_schema_extra=OPEN, description="The workers' affinity, as in a pod."
    )
    topology_spread_constraints: tuple[Annotated[dict[str, Any], Field(json_schema_extra=OPEN)], ...] = Field(
        default=(), max_length=10, description="How workers are spread over nodes, as in a pod."
    )
    environment: tuple[Variable, ...] = Field(
        default=(),
        max_length=200,
        json_schema_extra=keyed("name"),
        description="Environment variables of the engine; secrets by valueFrom.",
    )
    volumes: tuple[Volume, ...] = Field(
        default=(), max_length=50, json_schema_extra=keyed("name"), description="Further volumes, as in a pod."
    )
    volume_mounts: tuple[VolumeMount, ...] = Field(
        default=(),
        max_length=50,
        json_schema_extra=keyed("mountPath"),
        description="Where the further volumes appear in the engine's container.",
    )
    runtime_class_name: str | None = Field(
        default=None, min_length=1, max_length=253, description="The pods' runtime class, e.g. nvidia."
    )
    artifact_cache: ArtifactCache | None = Field(
        default=None, description="Where versions' files are kept between pods; none: each pod fetches its own."
    )
    head_fault_tolerance: HeadFaultTolerance | None = Field(
        default=None,
        description="Keeps the state of the revision's Ray cluster in Redis; none: a lost head restarts it.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("tensor_parallel_size", "pipeline_parallel_size"):
            if field in self.arguments:
                alias = type(self).model_fields[field].alias
                raise ValueError(f"arguments.{field} is set by the field {alias}: write it there")
        if taken := sorted(Lora().arguments.keys() & self.arguments.keys()):
            raise ValueError(f"arguments.{taken[0]} is set by the field lora: write it there")
        target = self.autoscaling.target_ongoing_requests
        if target is not None and target > self.max_ongoing_requests:
            raise ValueError(
                f"autoscaling.targetOngoingRequests ({target}) is greater than maxOngoingRequests ({self.max_ongoing_requests})"
            )
        workers = self.tensor_parallel_size * self.pipeline_parallel_size
        if self.ranks_per_pod is not None and workers % self.ranks_per_pod:
            raise ValueError(f"ranksPerPod ({self.ranks_per_pod}) must divide the {workers} workers of a replica")
        if self.platform == "kuberay" and self.resources.gpu != int(self.resources.gpu):
            raise ValueError(f"resources.gpu must be a whole number on platform kuberay, not {self.resources.gpu:g}")
        if not (self.resources.cpu or self.resources.gpu):
            raise ValueError("resources.cpu or resources.gpu must be above 0")
        known = {volume.name for volume in self.volumes}
        if unknown := [mount.name for mount in self.volume_mounts if mount.name not in known]:
            raise ValueError(f"volumeMounts name the volume {unknown[0]}, which is not among volumes")
        return self

    @property
    def ignored(self) -> list[str]:
        """Fields that are set and that the platform cannot obey: on `serve` the pods are those of a cluster that runs already."""
        if self.platform != "serve":
            return []
        fields = type(self).model_fields
        return [str(fields[name].alias) for name in POD if name in self.model_fields_set and getattr(self, name)]


POD: Final = (
    "ranks_per_pod",
    "image",
    "image_pull_secrets",
    "node_selector",
    "tolerations",
    "affinity",
    "topology_spread_constraints",
    "environment",
    "volumes",
    "volume_mounts",
    "runtime_class_name",
    "artifact_cache",
    "head_fault_tolerance",
)
"""Fields of `Engine` that speak of pods."""

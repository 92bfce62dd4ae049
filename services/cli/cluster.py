"""The cluster as a source: reads `LLMService` resources and their pods, leaves orders as annotations. Used by `kubectl understudy` and by
`understudy --context ...`.

Talks to the API server alone, through the operator's adapter; the person's own rights decide what is allowed. Never writes a status.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from services.cli import cluster_views
from services.cli.commands import DONE, ENDS_WITH, Given, Waiter
from services.cli.connection import one_line
from services.cli.errors import CliError, ClusterAway, NotFound, UsageFault
from services.cli.options import Where
from services.common.identifiers import uuid7
from services.rollout.operator.api import LLM_SERVICE, KubernetesApi
from services.rollout.operator.orders import COMMAND, pointer
from services.rollout.platforms.kubernetes_objects import KubernetesRejected, KubernetesUnavailable, NoCluster
from services.rollout.resources import LLMService
from services.store.rows import Verb

PART_OF: Final = "app.kubernetes.io/part-of=understudy"
LOOK_SECONDS: Final = 0.5
MANAGER: Final = "kubectl-understudy"
"""The field manager of what is changed in a resource."""
CHANGED: Final = (409, 422)
"""What the API server says when a resource is not as a patch presumes."""

Result = TypeVar("Result")


class Cluster:
    """One person's view of one namespace, or of all where `everywhere`."""

    def __init__(self, api: KubernetesApi, namespace: str, everywhere: bool, clock: Waiter) -> None:
        self._api, self._namespace, self._everywhere, self._clock = api, namespace, everywhere, clock
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End what runs beside the calls."""
        self._runner.run(self._api.close())
        self._runner.close()

    def status(self, service: str | None) -> dict[str, Any]:
        """As `views.status`; NotFound where there is no such resource, or none at all."""
        resources = self._resources() if service is None else [self._resource(service)]
        if not resources:
            raise NotFound(
                f"no LLMService in {self._place}; make one with `kubectl apply`, or look elsewhere with -n or -A"
            )
        return cluster_views.status(resources, self._clock.time())

    def rollouts(self, service: str | None, limit: int) -> dict[str, Any]:
        """As `views.rollouts`, of the ten that each resource remembers."""
        resources = self._resources() if service is None else [self._resource(service)]
        return cluster_views.rollouts(resources, limit, self._clock.time())

    def explain(self, what: str) -> dict[str, Any]:
        """As `views.explain`; the audit trail is the cluster's events."""
        now, resources = self._clock.time(), self._resources()
        for resource in resources:
            for rollout in cluster_views.remembered(resource, now):
                if rollout["id"] == what:
                    return cluster_views.explanation(resource, rollout, now)
        named = [one for one in resources if cluster_views.name_of(one) == what]
        if not named:
            raise NotFound(
                f"no service or rollout {what!r} in {self._place}; services: {_names(resources)}; "
                "rollouts: `kubectl understudy rollouts`"
            )
        return self._newest(self._only(named), now)

    def draw(self, told: dict[str, Any], path: Path) -> None:
        """A resource holds no course of the readings."""
        raise UsageFault("a picture is drawn from the store's readings: name it with --store URL")

    def progress(self, service: str, rollout: str | None) -> dict[str, Any]:
        """As `explain`, of one resource."""
        resource, now = self._resource(service), self._clock.time()
        if rollout is None:
            return self._newest(resource, now)
        for one in cluster_views.remembered(resource, now):
            if one["id"] == rollout:
                return cluster_views.explanation(resource, one, now)
        raise NotFound(f"{service} remembers rollout {rollout} no more")

    def resource(self, service: str) -> LLMService:
        """The service's resource as the cluster has it."""
        try:
            return LLMService.from_object(self._resource(service))
        except ValidationError as error:
            raise CliError(f"the resource of {service} is wrong: {one_line(error)}") from error

    def traffic(self, service: LLMService) -> None:
        """A resource does not say how many users come."""
        return

    def give(self, service: str, verb: Verb, *, actor: str, reason: str, wait: float) -> Given:
        """Leave the order as the resource's annotation and wait for `status.lastCommand`.

        Raises:
            NotFound: there is no such resource, or it never had a rollout.
            CliError: another order still waits, or this person may not change the resource.
        """
        until = self._clock.monotonic() + wait
        while True:
            resource = self._resource(service)
            rollout = cluster_views.newest(resource, self._clock.time())
            if rollout is None:
                raise NotFound(
                    f"service {service!r} has had no rollout yet, so there is nothing to {verb}; set the challenger alias to start one"
                )
            if rollout["stage"] == "finished" and rollout["verdict"] == ENDS_WITH.get(verb):
                return Given(None, service, rollout["id"], verb, f"{rollout['revision']} is {DONE[verb]} already")
            waiting = _order_of(resource)
            if waiting is not None and (waiting.get("verb"), waiting.get("rollout")) == (verb, rollout["id"]):
                order = str(waiting["id"])
                break
            if waiting is None:
                order = uuid7()
                text = {"id": order, "verb": verb, "rollout": rollout["id"], "note": reason, "by": actor}
                if self._annotate(resource, text):
                    break
            elif self._clock.monotonic() >= until:
                raise _still_waiting(service, waiting)
            self._clock.sleep(LOOK_SECONDS)
        return Given(order, service, rollout["id"], verb, self._answer(service, order, until))

    def pin(self, service: str, version: str, *, remove: bool, actor: str, reason: str, wait: float) -> Given:
        """Put a version into `spec.model.pinned`, or take it out, together with the order that says who did and why.

        Raises:
            NotFound: there is no such resource.
            CliError: another order still waits, or this person may not change the resource.
        """
        verb: Verb = "unpin" if remove else "pin"
        until = self._clock.monotonic() + wait
        while True:
            resource = self._resource(service)
            pinned: list[str] = resource["spec"].get("model", {}).get("pinned", [])
            if (version in pinned) is not remove:
                return Given(None, service, None, verb, f"v{version} is {'not pinned' if remove else 'pinned already'}")
            waiting = _order_of(resource)
            if waiting is None:
                wanted = [one for one in pinned if one != version] if remove else [*pinned, version]
                change = {"op": "add", "path": "/spec/model/pinned", "value": wanted}
                order = uuid7()
                text = {"id": order, "verb": verb, "rollout": None, "note": reason or f"v{version}", "by": actor}
                if self._annotate(resource, text, change):
                    return Given(order, service, None, verb, self._answer(service, order, until))
            elif self._clock.monotonic() >= until:
                raise _still_waiting(service, waiting)
            self._clock.sleep(LOOK_SECONDS)

    def logs(
        self, service: str, component: str, arm: str | None, lines: int, previous: bool
    ) -> Iterator[tuple[str, str]]:
        """The last lines of each container: (`pod/container`, line).

        Raises:
            NotFound: no pod carries the labels.
        """
        resource = self._resource(service)
        namespace = cluster_views.namespace_of(resource)
        selector = selector_of(resource, component, arm)
        pods = self._call(self._api.pods(namespace, selector))
        if not pods:
            raise NotFound(f"no pod in namespace {namespace} carries {selector}; is it installed there, and up?")
        for pod in sorted(pods, key=lambda one: str(one["metadata"]["name"])):
            name = str(pod["metadata"]["name"])
            for container in pod["spec"]["containers"]:
                text = self._call(self._api.pod_log(namespace, name, container["name"], lines, previous))
                for line in text.splitlines():
                    yield f"{name}/{container['name']}", line

    @property
    def _place(self) -> str:
        return "any namespace" if self._everywhere else f"namespace {self._namespace}"

    def _resources(self) -> list[dict[str, Any]]:
        namespace = "" if self._everywhere else self._namespace
        return self._call(self._api.list(LLM_SERVICE.group, LLM_SERVICE.version, namespace, LLM_SERVICE.plural, ""))

    def _resource(self, service: str) -> dict[str, Any]:
        if not self._everywhere:
            found = self._call(
                self._api.get(LLM_SERVICE.group, LLM_SERVICE.version, self._namespace, LLM_SERVICE.plural, service)
            )
            if found is not None:
                return found
        resources = self._resources()
        named = [one for one in resources if cluster_views.name_of(one) == service]
        if not named:
            raise NotFound(f"no service {service!r} in {self._place}; it has {_names(resources)}")
        return self._only(named)

    def _only(self, named: list[dict[str, Any]]) -> dict[str, Any]:
        if len(named) > 1:
            places = ", ".join(sorted(cluster_views.namespace_of(one) for one in named))
            raise UsageFault(f"{cluster_views.name_of(named[0])} is in the namespaces {places}: name one with -n")
        return named[0]

    def _newest(self, resource: Mapping[str, Any], now: float) -> dict[str, Any]:
        rollout = cluster_views.newest(resource, now)
        if rollout is None:
            stable = cluster_views.status_of(resource).get("stable")
            serving = f"{stable['revision']} serves everyone" if stable else "nothing serves yet"
            raise NotFound(
                f"{cluster_views.name_of(resource)} has had no rollout yet; {serving} (set the challenger alias to start one)"
            )
        return cluster_views.explanation(resource, rollout, now)

    def _annotate(self, resource: Mapping[str, Any], order: Mapping[str, Any], *changes: Mapping[str, Any]) -> bool:
        """False: the resource has changed since it was read. Nobody's order is overwritten: the patch holds for what was read alone.

        `changes`: what of the resource is changed along with it, as operations of a JSON patch.
        """
        metadata, text = resource["metadata"], json.dumps(order)
        path, value = (
            (pointer(COMMAND), text) if "annotations" in metadata else ("/metadata/annotations", {COMMAND: text})
        )
        operations = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": path, "value": value},
            *changes,
        ]
        with cluster_errors():
            try:
                where = metadata["namespace"], metadata["name"]
                self._runner.run(self._api.patch(LLM_SERVICE, *where, operations, MANAGER))
            except KubernetesRejected as error:
                # A failed test has no status of its own: what else is invalid stays so.
                now = self._resource(metadata["name"])["metadata"]["resourceVersion"]
                if error.status not in CHANGED or now == metadata["resourceVersion"]:
                    raise
                return False
        return True

    def _answer(self, service: str, order: str, until: float) -> str | None:
        while True:
            last = cluster_views.status_of(self._resource(service)).get("lastCommand") or {}
            if last.get("id") == order:
                return str(last["answer"]) or "done"
            left = until - self._clock.monotonic()
            if left <= 0:
                return None
            self._clock.sleep(min(LOOK_SECONDS, left))

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        with cluster_errors():
            return self._runner.run(coroutine)


@contextmanager
def opened_cluster(where: Where) -> Iterator[Cluster]:
    """The cluster that was asked for.

    Raises:
        UsageFault: no kubeconfig, or no such context in it.
    """
    try:
        api = KubernetesApi.connect(where.kubeconfig, where.context)
    except NoCluster as error:
        raise UsageFault(
            f"{one_line(error).rstrip('.')}; name a cluster with --kubeconfig or --context, or a store with --store"
        ) from error
    cluster = Cluster(api, where.namespace or api.namespace, where.everywhere, time)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Raises the API server's errors as `CliError`s.

    Raises:
        ClusterAway: it did not answer.
        CliError: it refused: who is asking may not, or the resource's definition is missing.
    """
    try:
        yield
    except KubernetesUnavailable as error:
        raise ClusterAway(f"the API server cannot be reached ({one_line(error)}); is the context right?") from error
    except KubernetesRejected as error:
        said = one_line(error)
        match error.status:
            case 401:
                text = f"the API server does not know who you are ({said}); log in again"
            case 403:
                text = f"you are not allowed to do that ({said}); ask whoever runs the cluster for the right"
            case 404:
                text = f"this cluster has no LLMService resource ({said}); install Understudy's chart, or name another --context"
            case _:
                text = f"the API server refused ({error.status}): {said}"
        raise CliError(text) from error


def selector_of(resource: Mapping[str, Any], component: str, arm: str | None) -> str:
    """The labels of a component's pods; of one arm's engine.

    Raises:
        UsageFault: an arm of something else than an engine, or of engines that share their pods.
        NotFound: there is no such arm now.
    """
    service = cluster_views.name_of(resource)
    if component != "engine":
        if arm is not None:
            raise UsageFault(f"--arm is about engines, and not about the {component}")
        return f"{PART_OF},app.kubernetes.io/component={component}"
    if on_shared_ray(resource):
        if arm is not None:
            raise UsageFault(f"the revisions of {service} share Ray's pods (platform serve): leave --arm out")
        return f"{PART_OF},app.kubernetes.io/component in (ray-head,ray-worker)"
    selector = f"understudy.dev/service={service}"
    if arm is None:
        return selector
    target = cluster_views.status_of(resource).get(arm)
    if target is None:
        raise NotFound(f"{service} has no {arm} now")
    return f"{selector},understudy.dev/revision={target['revision']}"


def on_shared_ray(resource: Mapping[str, Any]) -> bool:
    """Whether all revisions run on one Ray cluster."""
    return bool(resource.get("spec", {}).get("engine", {}).get("platform") == "serve")


def _names(resources: list[dict[str, Any]]) -> str:
    return ", ".join(sorted(cluster_views.name_of(one) for one in resources)) or "none"


def _still_waiting(service: str, order: Mapping[str, Any]) -> CliError:
    return CliError(
        f"{order.get('verb', 'an order')} {service} by {order.get('by', 'somebody')} still waits for the controller, "
        "and only one order can; nothing was ordered (is the controller up?)"
    )


def _order_of(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    """The order that waits on the resource; None where there is none, or what is there is not one."""
    text = resource["metadata"].get("annotations", {}).get(COMMAND)
    try:
        order = json.loads(text) if text else None
    except ValueError:
        return None
    return order if isinstance(order, dict) and "id" in order else None

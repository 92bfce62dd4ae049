"""Watches `LLMService` resources with kopf, in a thread and event loop of its own: kopf cancels every task of its loop when it ends, and
the services' loops must outlive an API server that is away. Started by `cluster`.

One thin handler that hands each resource over. Finalizers, status and events are the operator's own (`resource`): kopf stores nothing in
a resource.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf
from kopf._cogs.structs.credentials import Vault  # kopf takes one, and does not export its class

from services.common import events
from services.rollout.operator.api import LLM_SERVICE, KubernetesApi

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 1.0
"""Stopped while it asks what the API server has, kopf asks on for some seconds; nobody hears it."""
WATCH_SECONDS: Final = 240
"""After this the API server ends a watch, and a new one begins: so one that hangs without a word is noticed."""

Body = Mapping[str, Any]


def registry(api: KubernetesApi, see: Callable[[Body], None], lose: Callable[[Body], None]) -> kopf.OperatorRegistry:
    """What kopf calls: how to log in, and where resources go. `see` and `lose` are called in kopf's thread."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    def login(**_: Any) -> kopf.ConnectionInfo:
        now = api.credentials()
        scheme, token = [*(now.authorization or "").split(" ", 1), ""][:2]
        return kopf.ConnectionInfo(
            server=now.server,
            ca_path=now.ca_path,
            insecure=not now.verify,
            scheme=scheme or None,
            token=token or None,
            certificate_path=now.certificate_path,
            private_key_path=now.key_path,
        )

    @kopf.on.event(LLM_SERVICE.group, LLM_SERVICE.version, LLM_SERVICE.plural, registry=made)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        (lose if event["type"] == "DELETED" else see)(event["object"])

    return made


def settings() -> kopf.OperatorSettings:
    """Bounded waits; nothing stored, nothing posted, no peering: the store's lock says who acts."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.peering.standalone = True
    made.scanning.disabled = (
        True  # what is watched is known, and watching definitions or namespaces takes cluster-wide rights
    )
    made.watching.server_timeout = WATCH_SECONDS
    made.watching.client_timeout = WATCH_SECONDS + 30
    made.watching.connect_timeout = made.networking.connect_timeout = 5
    made.networking.request_timeout = 20
    made.networking.error_backoffs = (1, 1, 2, 3, 5)
    return made


class Watch:
    """One watch of a namespace (None: of all); `see` and `lose` are called in the event loop that makes it."""

    def __init__(
        self, api: KubernetesApi, namespace: str | None, see: Callable[[Body], None], lose: Callable[[Body], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._registry = registry(api, self._hand(see), self._hand(lose))
        self._namespace = namespace
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still watches; one that has failed is replaced."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends it: from now on nothing is handed over. Returns when its thread has ended, or after a second without."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _hand(self, receiver: Callable[[Body], None]) -> Callable[[Body], None]:
        """From kopf's thread to the event loop of whoever watches."""

        def receive(body: Body) -> None:
            if not self._stop.is_set():
                receiver(body)

        def hand(body: Body) -> None:
            if not self._stop.is_set():
                self._loop.call_soon_threadsafe(receive, body)

        return hand

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception as error:  # noqa: BLE001  # whatever it is, watching begins anew
            log.warning(events.WATCH_ENDED, {"error": error})

    async def _watch(self) -> None:
        where: dict[str, Any] = {"clusterwide": True} if self._namespace is None else {"namespaces": [self._namespace]}
        vault = Vault()
        try:
            await kopf.operator(
                registry=self._registry,
                settings=settings(),
                standalone=True,
                stop_flag=self._stop,
                vault=vault,
                **where,
            )
        finally:
            # kopf closes its sessions before its last requests have ended, and one of those may log in again.
            await vault.close()

"""Tells people of a rollout's events: posts entries of the audit trail to the webhooks that the resource names. Run by the controller
beside the looks, one task a service, so that a receiver that hangs keeps no look waiting.

At least once and in order: what was sent is itself an entry of the audit trail, from which the next controller goes on. A receiver that
stays away loses an event after the last attempt, and the audit trail says so. Must not write a URL or a secret into a log or entry.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from services.common import events
from services.common.clock import rfc3339
from services.rollout import reasons
from services.rollout.resources import LLMService, Notification
from services.store import AuditEntry, Store, StoreError

log = logging.getLogger(__name__)

PAUSES: Final = (2.0, 8.0, 30.0, 120.0)
"""Seconds between the attempts for one event."""
STALE_SECONDS: Final = 86_400.0
"""Events older than this are not sent any more: a name that was taken out and put in again must not bring up the past."""

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_BATCH: Final = 100


class _Refused(Exception):
    """The receiver does not want it, or is not known; sending it again is useless."""


class _Away(Exception):
    """The receiver did not answer, or has no time now."""


class Notifier:
    """The notifications of one service."""

    def __init__(
        self,
        service: LLMService,
        store: Store,
        session: aiohttp.ClientSession,
        environ: Mapping[str, str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`environ`: where URLs and keys that are secrets stand, by the names in the resource."""
        self._service, self._store, self._session, self._environ, self._sleep = service, store, session, environ, sleep

    async def run(self) -> None:
        """Until cancelled; each receiver by itself, so that one that is away holds up no other."""
        async with asyncio.TaskGroup() as group:
            for notification in self._service.spec.rollout.notifications:
                group.create_task(self._follow(notification))

    async def _follow(self, notification: Notification) -> None:
        pause = max(1.0, self._service.spec.rollout.look)
        sent: int | None = None
        while True:
            try:
                if sent is None:
                    sent = await self._begin(notification)
                for entry in await asyncio.to_thread(
                    self._store.audit_after, self._service.name, sent, notification.events, _BATCH
                ):
                    await self._deliver(notification, entry)
                    sent = entry.id
            except StoreError as error:
                log.warning(events.NOTIFICATIONS_WAIT, {"service": self._service.name, "error": error})
            await self._sleep(pause)

    async def _begin(self, notification: Notification) -> int:
        """The entry after which to go on: the last one that was sent, or the newest where this receiver is new."""
        name = self._service.name
        last = await asyncio.to_thread(self._store.last_audit, name, _actor(notification))
        if last is not None:
            return int(last.evidence["upTo"])
        newest = await asyncio.to_thread(self._store.audit, name, None, 1)
        begin = newest[0].id or 0 if newest else 0
        await self._note(notification, reasons.NOTIFICATIONS_BEGIN, "events are sent from here on", begin)
        return begin

    async def _deliver(self, notification: Notification, entry: AuditEntry) -> None:
        """Sends one event, with further attempts, and notes what became of it."""
        if await asyncio.to_thread(self._store.now) - entry.at > STALE_SECONDS:
            return
        about = f"{entry.action} of {entry.service} ({entry.reason})"
        failure = ""
        for pause in (*PAUSES, None):
            try:
                await self._send(notification, entry)
            except _Refused as error:
                failure = str(error)
                break
            except _Away as error:
                failure = str(error)
                if pause is not None:
                    await self._sleep(pause)
            else:
                await self._note(notification, reasons.NOTIFICATION_SENT, about, entry.id)
                return
        told = {"notification": notification.name, "about": about, "error": failure}
        log.warning(events.NOTIFICATION_LOST, {"service": entry.service, "rollout": entry.rollout, **told})
        await self._note(notification, reasons.NOTIFICATION_FAILED, f"{about} was not delivered: {failure}", entry.id)

    async def _send(self, notification: Notification, entry: AuditEntry) -> None:
        url = notification.url or self._secret(str(notification.url_env))
        body = msgspec.json.encode(_slack(entry) if notification.kind == "slack" else _generic(entry))
        headers = {"Content-Type": "application/json", "X-Understudy-Event": str(entry.id)}
        if notification.secret_env is not None:
            key = self._secret(notification.secret_env).encode()
            headers["X-Understudy-Signature"] = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        try:
            # A redirection could carry event and signature to anybody.
            async with self._session.post(
                url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as answer:
                status = answer.status
        except aiohttp.InvalidURL as error:
            raise _Refused("its URL is none") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Away(f"no answer ({type(error).__name__})") from error  # the text of some errors holds the URL
        if status == 429 or status >= 500:
            raise _Away(f"answered {status}")
        if not 200 <= status < 300:
            raise _Refused(f"answered {status}")

    def _secret(self, name: str) -> str:
        if not (value := self._environ.get(name)):
            raise _Refused(f"the controller's environment has no {name}")
        return value

    async def _note(self, notification: Notification, reason: str, message: str, up_to: int | None) -> None:
        entry = AuditEntry(
            at=await asyncio.to_thread(self._store.now),
            service=self._service.name,
            rollout=None,
            actor=_actor(notification),
            action="notify",
            reason=reason,
            message=message,
            evidence={"upTo": up_to},
        )
        await asyncio.to_thread(self._store.append_audit, [entry])


def _actor(notification: Notification) -> str:
    return f"notification {notification.name}"


def _generic(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "event": entry.action,
        "service": entry.service,
        "rollout": entry.rollout,
        "reason": entry.reason,
        "message": entry.message,
        "actor": entry.actor,
        "at": rfc3339(entry.at, "milliseconds"),
        "evidence": entry.evidence,
    }


def _slack(entry: AuditEntry) -> dict[str, Any]:
    text = f"{entry.service}: {entry.action} ({entry.reason})\n{entry.message}\nby {entry.actor}"
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}

"""The admission webhook, optional: refuses a wrong resource with its field's path, and stamps who gave a command. Served by every replica,
also one that stands by; started by `__main__`.

The stamp is what makes `understudy.dev/command-by` worth believing: whoever writes that annotation by hand finds it taken out again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from cryptography import x509
from pydantic import ValidationError

from services.common import events
from services.common.manifest import explain
from services.rollout.operator.orders import COMMAND, COMMAND_BY, pointer
from services.rollout.operator.resource import parse
from services.rollout.resources import LLMService

log = logging.getLogger(__name__)

LONGEST_BODY: Final = 8 * 2**20  # the API server takes no larger objects than 3 MiB, and sends the old one along
RELOAD_SECONDS: Final = 300.0


def validate(request: Mapping[str, Any]) -> dict[str, Any]:
    """The response to an AdmissionReview's request: whether the resource may be stored. One that is being deleted always may."""
    resource = request.get("object")
    if not resource or resource["metadata"].get("deletionTimestamp"):
        return {"allowed": True}
    try:
        parse(resource)
    except ValidationError as error:
        return {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": explain(error, LLMService)}}
    return {"allowed": True}


def mutate(request: Mapping[str, Any]) -> dict[str, Any]:
    """The response that stamps a new command with its giver, and else keeps the stamp as it was."""
    new = _annotations(request.get("object"))
    old = _annotations(request.get("oldObject"))
    if COMMAND not in new:
        wanted = None
    elif new[COMMAND] != old.get(COMMAND):
        wanted = str(request["userInfo"]["username"])
    else:
        wanted = old.get(COMMAND_BY)
    if new.get(COMMAND_BY) == wanted:
        return {"allowed": True}
    path = pointer(COMMAND_BY)
    patch = [{"op": "remove", "path": path} if wanted is None else {"op": "add", "path": path, "value": wanted}]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


def admission_app() -> web.Application:
    """`POST /validate` and `POST /mutate`, as the API server calls them."""

    def handler(answer: Any) -> Any:
        async def handle(http: web.Request) -> web.Response:
            try:
                review = await http.json()
                request = review["request"]
                response = {"uid": request["uid"], **answer(request)}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return web.Response(status=400, text=f"no AdmissionReview: {error!r}\n")
            if not response["allowed"]:
                told = {"service": request.get("name"), "error": response["status"]["message"]}
                log.info(events.ADMISSION_REFUSED, told)
            return web.json_response(
                {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
            )

        return handle

    app = web.Application(client_max_size=LONGEST_BODY)
    app.router.add_post("/validate", handler(validate))
    app.router.add_post("/mutate", handler(mutate))
    return app


def tls(folder: Path) -> ssl.SSLContext:
    """From tls.crt and tls.key. Raises OSError, also where they are no certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, folder)
    return context


def certificate_end(folder: Path) -> float:
    """When tls.crt ends, in seconds since the epoch. Raises OSError, also where it is no certificate."""
    try:
        found = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    except ValueError as error:
        raise OSError(f"{folder / 'tls.crt'}: {error}") from error
    return found.not_valid_after_utc.timestamp()


async def renew(context: ssl.SSLContext, folder: Path) -> None:
    """Until cancelled: certificates are replaced in their Secret long before they end, and the kubelet brings them here."""
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        try:
            _load(context, folder)
        except OSError as error:
            log.error(events.CERTIFICATE_UNREADABLE, {"error": error})


def _load(context: ssl.SSLContext, folder: Path) -> None:
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")


def _annotations(resource: Mapping[str, Any] | None) -> Mapping[str, str]:
    found: Mapping[str, str] = ((resource or {}).get("metadata") or {}).get("annotations") or {}
    return found

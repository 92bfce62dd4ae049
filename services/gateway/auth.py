"""Who calls: API keys, known only by their hashes. Called once a request; does no I/O and writes no log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from services.common.wire import Unauthenticated
from services.gateway.settings import KeySettings, Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """The key's owner."""

    name: str
    tenant: str
    scopes: frozenset[Scope]
    requests_per_minute: float | None


class Keys:
    """The configured keys. A key is always hashed whole: nothing is looked up or cached by a part of it."""

    def __init__(self, keys: Iterable[KeySettings]) -> None:
        self._callers = {key.sha256: Caller(key.name, key.tenant, key.scopes, key.requests_per_minute) for key in keys}

    def authenticate(self, authorization: bytes | None) -> Caller:
        """The caller of an `Authorization: Bearer KEY` header.

        Raises:
            Unauthenticated: no header, another scheme, or an unknown key. The text never repeats what was sent.
        """
        if authorization is None:
            raise Unauthenticated("No API key was given: send it as `Authorization: Bearer KEY`.")
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("The Authorization header must be `Bearer KEY`.")
        # Timing tells nothing: what is looked up is a hash, which a client cannot steer towards a known one byte by byte.
        caller = self._callers.get(hashlib.sha256(key.strip()).hexdigest())
        if caller is None:
            raise Unauthenticated("The API key is not valid.")
        return caller

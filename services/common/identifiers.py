"""Names that several services must form alike: request ids, hashed units, revision names."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from typing import Any


def uuid7() -> str:
    """A UUID version 7 (RFC 9562, section 5.7): 48 bits of milliseconds since the epoch, then random bits, so ids sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def uuid7_time(text: str) -> float | None:
    """Seconds since the epoch at which a UUID version 7 was made; None: it is none."""
    digits = text.replace("-", "")
    if len(digits) != 32 or digits[12] != "7":
        return None
    try:
        return int(digits[:12], 16) / 1000
    except ValueError:
        return None


def unit_of(key: bytes, tenant: str, user: str) -> str:
    """The keyed hash under which a user appears in the store: 32 hexadecimal digits of HMAC-SHA256 over tenant and user."""
    return hmac.digest(key, f"{tenant}\0{user}".encode(), hashlib.sha256).hex()[:32]


def canonical_hash(value: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) over a JSON object with sorted keys: equal content gives equal hashes in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def revision_name(service: str, version: str, digest: str) -> str:
    """The revision's name, e.g. `assistant-v4-7c1f`: registry version and the first four digits of the specification's `canonical_hash`."""
    return f"{service}-v{version}-{digest[:4]}"

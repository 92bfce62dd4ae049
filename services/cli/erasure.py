"""Finds what `understudy erase` needs: the key under which users are hidden in the store. Called by `main`.

The controller does not have this key, so that whoever reads the store or runs the controller cannot tell who a user is: a person brings it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from services.cli.connection import SQLITE
from services.cli.errors import UsageFault

STDIN: Final = Path("-")
_SHORTEST: Final = 16  # as the gateway's setting `unit_key`


def unit_key(file: Path | None, store_url: str) -> bytes:
    """The key in `file`, or else beside the store of a platform on this machine.

    Raises:
        UsageFault: there is no such file, or what it holds is no key.
    """
    if file is None and store_url.startswith(SQLITE):
        file = Path(store_url.removeprefix(SQLITE)).parent / "secrets.json"
    if file is None:
        raise UsageFault("users are hidden under a key: pass --key-file FILE, or - for standard input")
    try:
        text = (sys.stdin.read() if file == STDIN else file.read_text()).strip()
        if file.suffix == ".json":
            text = str(json.loads(text)["unit_key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageFault(f"no key in {file} ({error!r}): pass --key-file FILE, or - for standard input") from error
    if len(text) < _SHORTEST:
        raise UsageFault(f"{file} holds no key: it has at least {_SHORTEST} characters")
    return text.encode()

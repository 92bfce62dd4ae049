"""Opens the store that a command talks to, and turns the store's errors into lines for people.

Used by every command that needs the store. SQLAlchemy is imported here, at the first command that needs it, so that `--help` stays fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli.errors import CliError, StoreAway, UsageFault

if TYPE_CHECKING:
    from services.store import Store

DEMO_STORE: Final = Path("demo/run/understudy.db")
SQLITE: Final = "sqlite:///"
PREFIXES: Final = (SQLITE, "postgresql://", "postgresql+psycopg://")

StoreOpener = Callable[[str], "Store"]


def store_url(given: str | None) -> str:
    """The store's URL: the one given, else the demo's store where the working directory has one.

    Raises:
        UsageFault: none was given and there is no demo, or the URL names a database that the store does not speak to.
    """
    if not given:
        if DEMO_STORE.exists():
            return f"{SQLITE}{DEMO_STORE}"
        raise UsageFault(
            "no store given: pass --store URL or set UNDERSTUDY_STORE_URL, "
            "for example sqlite:///understudy.db or postgresql://user@host/understudy"
        )
    if not given.startswith(PREFIXES):
        raise UsageFault(f"store URL {without_password(given)!r} must begin with sqlite:/// or postgresql://")
    return given


def without_password(url: str) -> str:
    """The URL as it may be shown: a password becomes `***`."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Raises the store's errors as `CliError`s.

    Raises:
        StoreAway: the database did not answer.
        CliError: its schema is another version's, or its content is damaged.
    """
    from services.store.errors import SchemaMismatch, StoreError, StoreUnavailable

    shown = without_password(url)
    try:
        yield
    except StoreUnavailable as error:
        raise StoreAway(
            f"store {shown} cannot be reached ({one_line(error)}); is it up, and is the URL right?"
        ) from error
    except SchemaMismatch as error:
        raise CliError(
            f"store {shown} has another schema than this version; run `understudy migrate --store {shown}`"
        ) from error
    except StoreError as error:
        raise CliError(f"store {shown} failed: {one_line(error)}") from error


@contextmanager
def opened(url: str) -> Iterator[Store]:
    """The store at `url`, closed at the end.

    Raises:
        StoreAway: the database did not answer, or its file does not exist (looking must not create one).
        CliError: as `store_errors`.
    """
    if url.startswith(SQLITE) and not (path := Path(url.removeprefix(SQLITE))).is_file():
        raise StoreAway(f"no store at {path}: check --store, or create it with `understudy migrate --store {url}`")
    with store_errors(url):
        from services.store import open_store

        store = open_store(url)
        try:
            store.ping()
            yield store
        finally:
            store.close()


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"

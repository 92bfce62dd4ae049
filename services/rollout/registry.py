"""The model registry: aliases in, verdicts out. The only module that imports MLflow, and only once it is used: the import takes seconds.

Called by `observe` and `execute`. Must not decide: it reads aliases, versions and evaluations, and writes what it is told.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

from services.rollout.errors import EvaluationInvalid, RegistryRejected, RegistryUnavailable
from services.rollout.observed import Evaluation, VersionInfo

EVALUATION: Final = "evaluation/evaluation.json"
OWNER_TAG: Final = "understudy.owner."
Answer = TypeVar("Answer")


class Registry(Protocol):
    """What the controller asks of a model registry. Every method may raise RegistryUnavailable or RegistryRejected."""

    async def alias(self, model: str, alias: str) -> VersionInfo | None:
        """The version that has the alias; None: none has."""
        ...

    async def version(self, model: str, version: str) -> VersionInfo | None:
        """One version; None: there is none of that number."""
        ...

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        """Moves the alias to the version."""
        ...

    async def delete_alias(self, model: str, alias: str) -> None:
        """Takes the alias away; no error where there is none."""
        ...

    async def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        ...

    async def evaluation(self, info: VersionInfo) -> Evaluation | None:
        """The version's offline evaluation; None: its run has none. Raises EvaluationInvalid."""
        ...

    async def claim(self, model: str, alias: str, owner: str) -> str:
        """Who owns the alias; `owner` from now on if nobody did."""
        ...

    async def release(self, model: str, alias: str, owner: str) -> None:
        """Gives the alias up where `owner` owns it; no error where it does not, or where there is no such model."""
        ...

    async def close(self) -> None:
        """Ends worker threads."""
        ...


class MlflowRegistry:
    """MLflow behind `Registry`. Calls block, so they run in threads of their own; `timeout` is seconds per call."""

    def __init__(self, uri: str, *, timeout: float = 10.0, threads: int = 4) -> None:
        self._uri = uri
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="registry")
        self._client: Any = None
        self._making = threading.Lock()

    async def alias(self, model: str, alias: str) -> VersionInfo | None:
        return await self._ask(lambda client: _info(client.get_model_version_by_alias(model, alias)), absent=None)

    async def version(self, model: str, version: str) -> VersionInfo | None:
        return await self._ask(lambda client: _info(client.get_model_version(model, version)), absent=None)

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        await self._ask(lambda client: client.set_registered_model_alias(model, alias, version))

    async def delete_alias(self, model: str, alias: str) -> None:
        await self._ask(lambda client: client.delete_registered_model_alias(model, alias), absent=None)

    async def tag_version(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        def ask(client: Any) -> None:
            for key, value in tags.items():
                client.set_model_version_tag(model, version, key, value)

        await self._ask(ask)

    async def evaluation(self, info: VersionInfo) -> Evaluation | None:
        run = info.run_id
        if run is None:
            return None
        text = await self._ask(lambda client: _text(client, run), absent=None)
        return None if text is None else parse_evaluation(text, info.version)

    async def claim(self, model: str, alias: str, owner: str) -> str:
        def ask(client: Any) -> str:
            key = OWNER_TAG + alias
            found = client.get_registered_model(model).tags.get(key)
            if found is None:
                client.set_registered_model_tag(model, key, owner)
                found = client.get_registered_model(model).tags.get(key)
            return str(found)

        return await self._ask(ask)

    async def release(self, model: str, alias: str, owner: str) -> None:
        def ask(client: Any) -> None:
            key = OWNER_TAG + alias
            if client.get_registered_model(model).tags.get(key) == owner:
                client.delete_registered_model_tag(model, key)

        await self._ask(ask, absent=None)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, question: Callable[[Any], Answer], **absent: Answer) -> Answer:
        """Runs a question in a thread. With `absent`, that is the answer where MLflow knows no such thing."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._threads, self._call, question, absent)
        except TimeoutError:
            raise RegistryUnavailable(f"MLflow at {self._uri} did not answer within {self._timeout:g} s") from None

    def _call(self, question: Callable[[Any], Answer], absent: Mapping[str, Answer]) -> Answer:
        client = self._connected()
        from mlflow.exceptions import MlflowException

        try:
            return question(client)
        except MlflowException as error:
            code = str(error.error_code)
            # An alias that nobody has is an "invalid parameter" to MLflow.
            if absent and (code == "RESOURCE_DOES_NOT_EXIST" or "not found" in str(error).lower()):
                return absent["absent"]
            if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED"):
                raise RegistryRejected(f"MLflow at {self._uri}: {error}") from error
            raise RegistryUnavailable(f"MLflow at {self._uri}: {error}") from error
        except OSError as error:
            raise RegistryUnavailable(f"MLflow at {self._uri}: {error}") from error

    def _connected(self) -> Any:
        """The client; made in the thread that first needs it. MLflow's own retries would keep a look waiting for minutes."""
        with self._making:
            if self._client is None:
                from mlflow.tracking import MlflowClient

                self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            return self._client


def parse_evaluation(text: str, version: str) -> Evaluation:
    """Reads `{dataset: {digest}, items: [{id, correct}]}`.

    Raises:
        EvaluationInvalid: it is of another form, empty, or names an item twice.
    """
    try:
        document = json.loads(text)
        rows = [(str(item["id"]), item["correct"]) for item in document["items"]]
        evaluation = Evaluation(str(document["dataset"]["digest"]), dict(rows))
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationInvalid(f"{EVALUATION} of v{version} cannot be read: {error!r}") from error
    if not rows or len(evaluation.items) != len(rows) or not all(isinstance(right, bool) for _, right in rows):
        raise EvaluationInvalid(
            f"{EVALUATION} of v{version} is empty, names an item twice, or has a `correct` that is no boolean"
        )
    return evaluation


def _info(found: Any) -> VersionInfo:
    return VersionInfo(str(found.version), str(found.source), dict(found.tags or {}), found.run_id or None)


def _text(client: Any, run: str) -> str | None:
    folder = EVALUATION.rpartition("/")[0]
    if EVALUATION not in {entry.path for entry in client.list_artifacts(run, folder)}:
        return None
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="understudy-") as scratch:
        path = client.download_artifacts(run, EVALUATION, scratch)
        with open(path, encoding="utf-8") as file:
            return file.read()

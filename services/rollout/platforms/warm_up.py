"""First completions of new engines: what turns a platform's "running" into a revision that is ready.

Platforms call it. Running does not mean routable: only answered completions do, through the address that gateways will use; and the
first ones of an engine are slow (kernels are chosen, caches filled), so users should not meet them. It must not judge the answers.
"""

import asyncio
from typing import Final

import aiohttp

_COMPLETIONS: Final = 3
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)


class WarmUps:
    """Which revisions have answered since they last came up, by name. One task a revision that has not."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._answered: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._errors: dict[str, str] = {}
        self._refused: set[str] = set()

    def answered(self, name: str, address: str) -> bool:
        """Whether the revision has completed its warm-up at `address`, the base URL ending in /v1; one that has not is asked now."""
        if name not in self._answered and name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._ask(name, address))
        return name in self._answered

    def refused(self, name: str) -> bool:
        """Whether the last try was answered with 400: the engine will not learn to serve it."""
        return name in self._refused

    def message(self, name: str) -> str:
        """What became of the last try, for a person."""
        return self._errors.get(name, "answering its first completions")

    def forget(self, name: str) -> None:
        """The revision is down: it must answer anew."""
        self._answered.discard(name)
        self._errors.pop(name, None)
        self._refused.discard(name)
        if task := self._tasks.pop(name, None):
            task.cancel()

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, name: str, address: str) -> None:
        body = {"model": name, "prompt": "a", "max_tokens": 1}
        try:
            for _ in range(_COMPLETIONS):
                async with self._session.post(f"{address}/completions", json=body, timeout=_TIMEOUT) as answer:
                    if answer.status != 200:
                        text = (await answer.text())[:300]
                        self._errors[name] = f"a first completion was answered {answer.status}: {text}"
                        if answer.status == 400:
                            self._refused.add(name)
                        return
                    await answer.read()
            self._answered.add(name)
            self._errors.pop(name, None)
            self._refused.discard(name)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._errors[name] = f"a first completion got no answer: {error or type(error).__name__}"
        finally:
            if self._tasks.get(name) is asyncio.current_task():
                del self._tasks[name]  # the next question tries again

"""Content filters: prompts that match a configured pattern are refused before any engine sees them. Off unless configured."""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.common.wire import BadRequest
from services.gateway.requests import ModelRequest
from services.gateway.settings import ContentFilter


class ContentFilters:
    """The configured patterns."""

    def __init__(self, filters: Iterable[ContentFilter]) -> None:
        self._patterns = [(one.name, re.compile(one.pattern, re.IGNORECASE)) for one in filters]

    def check(self, request: ModelRequest) -> None:
        """Refuses a prompt that matches.

        Raises:
            BadRequest: with the filter's name, never with what matched.
        """
        if not self._patterns:
            return
        texts = request.texts()
        for name, pattern in self._patterns:
            if any(pattern.search(text) for text in texts):
                raise BadRequest(f"The prompt was refused by the content filter `{name}`.", code="content_filter")

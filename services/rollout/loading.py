"""Reads `LLMService` resources from a YAML file and says where a mistake is: path, line, field. Called by the controller in file mode and
by the command line; must not do anything with what it reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from services.rollout.errors import InvalidResource
from services.rollout.resources import LLMService


def load(path: Path) -> list[LLMService]:
    """All `LLMService` documents of a file, in order; documents of other kinds are left to those who know them.

    Raises:
        InvalidResource: the file is missing, is no YAML, or a field is wrong; one line a mistake, `path:line: field: message`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidResource(f"{path}: cannot be read: {error}") from error
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidResource(f"{path}:{line}: not YAML: {error.problem}") from error
    problems: list[str] = []
    services: list[LLMService] = []
    for node in nodes:
        if _other_kind(node):
            continue
        problems += [f"{path}:{line}: {key}: the field is given twice" for line, key in _repeated(node)]
        constructor = yaml.SafeLoader("")
        try:
            services.append(LLMService.model_validate(constructor.construct_document(node)))
        except yaml.MarkedYAMLError as error:
            problems.append(f"{path}:{node.start_mark.line + 1}: not YAML: {error.problem}")
        except ValidationError as error:
            problems += _explain_all(path, node, [dict(mistake) for mistake in error.errors(include_url=False)])
    names = [service.name for service in services]
    problems += [f"{path}: two services are named {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    if not problems and not services:
        problems.append(f"{path}: holds no LLMService")
    if problems:
        raise InvalidResource("\n".join(problems))
    return services


def _other_kind(node: yaml.Node) -> bool:
    """Whether the document names another kind, and not just this one misspelt."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    kind = next((str(value.value) for key, value in pairs if key.value == "kind"), "LLMService")
    return not difflib.get_close_matches(kind, ["LLMService"], cutoff=0.7)


def _explain_all(path: Path, root: yaml.Node, mistakes: list[dict[str, Any]]) -> list[str]:
    """One line a mistake, in the file's order. A sequence of wrong items is reported as too short besides; that would only confuse."""
    located = [tuple(mistake["loc"]) for mistake in mistakes]
    own = [
        mistake
        for mistake in mistakes
        if mistake["type"] != "too_short"
        or not any(loc[: len(mistake["loc"])] == tuple(mistake["loc"]) != loc for loc in located)
    ]
    return [_explain(path, root, mistake) for mistake in sorted(own, key=lambda m: _line(root, tuple(m["loc"])))]


def _explain(path: Path, root: yaml.Node, mistake: dict[str, Any]) -> str:
    location = tuple(mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "unknown field" + _suggestion(location)
    elif mistake["type"] == "missing":
        message = "the field is missing"
    elif mistake["type"] not in ("value_error", "assertion_error"):
        message = f"{message}, not {mistake['input']!r}"
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return f"{path}:{_line(root, location)}: {field or 'document'}: {message}"


def _line(root: yaml.Node, location: tuple[int | str, ...]) -> int:
    """The line of the deepest part of a location that the file holds."""
    node, line = root, root.start_mark.line
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _repeated(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Keys given twice in one mapping: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, str(key.value)
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] | None = LLMService
    for part in location[:-1]:
        if isinstance(part, str) and model is not None:
            field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
            model = _model_in(field.annotation) if field else None
    if model is None:
        return ""
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation holds: itself, or inside `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, list):
        return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
    return None

"""Reads resources from a YAML file of several documents and says where a mistake is: path, line, field.

Called with the models of the kinds a program knows: the controller reads `LLMService`, the laptop's platform `LocalPlatform`. Documents
of other kinds are left to the programs that know them. Must not do anything with what it reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

Document = TypeVar("Document", bound=BaseModel)


class InvalidManifest(ValueError):
    """A resource file is wrong; the text has one line a mistake, `path:line: field: message`."""


def read(path: Path, kinds: Mapping[str, type[Document]]) -> list[Document]:
    """All documents of the named kinds in a YAML file, in order.

    Raises:
        InvalidManifest: the file is missing, is no YAML, holds none of the kinds or two of one kind and name, or a field is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest(f"{path}: cannot be read: {error}") from error
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidManifest(f"{path}:{line}: not YAML: {error.problem}") from error
    problems: list[str] = []
    documents: list[Document] = []
    names: list[tuple[str, object]] = []
    others: list[str] = []
    for node in nodes:
        kind = _kind(node)
        model = kinds.get(kind, None if _foreign(kind, kinds) else next(iter(kinds.values())))
        if model is None:
            others.append(kind)
            continue
        problems += [f"{path}:{line}: {key}: the field is given twice" for line, key in _repeated(node)]
        try:
            document = model.model_validate(yaml.SafeLoader("").construct_document(node))
        except yaml.MarkedYAMLError as error:
            problems.append(f"{path}:{node.start_mark.line + 1}: not YAML: {error.problem}")
        except ValidationError as error:
            problems += _explain_all(path, node, model, [dict(mistake) for mistake in error.errors(include_url=False)])
        else:
            documents.append(document)
            names.append((kind, getattr(getattr(document, "metadata", None), "name", None)))
    twice = {name for name in names if names.count(name) > 1}
    problems += [f"{path}: two documents of kind {kind} are named {name}" for kind, name in sorted(twice, key=str)]
    if not problems and not documents:
        held = f"; it holds {', '.join(others)}" if others else ""
        problems.append(f"{path}: holds no {' or '.join(kinds)}{held}")
    if problems:
        raise InvalidManifest("\n".join(problems))
    return documents


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The mistakes of a document that came from elsewhere than a file, one line each: `field: message`."""
    return "\n".join(_field(model, dict(mistake)) for mistake in error.errors(include_url=False))


def _kind(node: yaml.Node) -> str:
    """The document's kind; empty where it names none."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next((str(value.value) for key, value in entries if key.value == "kind"), "")


def _foreign(kind: str, kinds: Mapping[str, object]) -> bool:
    """Whether a document is another program's; a kind that is nearly ours is a typing mistake and is reported."""
    return bool(kind) and kind not in kinds and not difflib.get_close_matches(kind, list(kinds), n=1, cutoff=0.8)


def _explain_all(path: Path, root: yaml.Node, model: type[BaseModel], mistakes: list[dict[str, Any]]) -> list[str]:
    """One line a mistake, in the file's order. A sequence of wrong items is reported as too short besides; that would only confuse."""
    located = [tuple(mistake["loc"]) for mistake in mistakes]
    own = [
        mistake
        for mistake in mistakes
        if mistake["type"] != "too_short"
        or not any(loc[: len(mistake["loc"])] == tuple(mistake["loc"]) != loc for loc in located)
    ]
    return [_explain(path, root, model, mistake) for mistake in sorted(own, key=lambda m: _line(root, tuple(m["loc"])))]


def _explain(path: Path, root: yaml.Node, model: type[BaseModel], mistake: dict[str, Any]) -> str:
    return f"{path}:{_line(root, tuple(mistake['loc']))}: {_field(model, mistake)}"


def _field(model: type[BaseModel], mistake: dict[str, Any]) -> str:
    location = tuple(mistake["loc"])
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "unknown field" + _suggestion(model, location)
    elif mistake["type"] == "missing":
        message = "the field is missing"
    elif mistake["type"] not in ("value_error", "assertion_error"):
        message = f"{message}, not {mistake['input']!r}"
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return f"{field or 'document'}: {message}"


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


def _suggestion(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] | None = root
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

"""What the models of the `LLMService` resource share. Used by the `resources` modules; `crd` reads what `cel` leaves in the schema."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict, JsonValue

VALIDATIONS: Final = "x-kubernetes-validations"


class Resource(BaseModel):
    """What all parts share: camelCase outside, no unknown fields, no changes after reading."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


def cel(*rules: tuple[str, str, str]) -> ConfigDict:
    """A model's cross-field rules for the API server, each (CEL expression over `self`, message, field; empty: the object itself).

    They are the twins of its validators, so that a wrong resource is refused at admission and not only by the controller.
    """
    made: list[JsonValue] = []
    for rule, message, field in rules:
        path: JsonDict = {"fieldPath": f".{field}"} if field else {}
        made.append({"rule": rule, "message": message, **path})
    return ConfigDict(json_schema_extra={VALIDATIONS: made})


def keyed(*keys: str) -> JsonDict:
    """A list whose items are known by these fields: the API server refuses two alike and merges server-side applies item by item."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


OPEN: Final[JsonDict] = {"x-kubernetes-preserve-unknown-fields": True}
"""An object whose fields are others' (vLLM's, the pod's) and are passed on untouched."""

URL: Final = r"^https?://[^\s/]+"

SecretVariable = Annotated[str, StringConstraints(pattern=r"^UNDERSTUDY_SECRET_[A-Z0-9_]+$", max_length=100)]
"""Name of an environment variable of the controller that holds a secret. The prefix keeps resources away from the controller's own."""

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)]
"""A name as Kubernetes gives them within one object."""

PinnedVersion = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$", max_length=9)]
"""A version number of the registry."""

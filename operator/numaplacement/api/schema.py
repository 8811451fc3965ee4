# SPDX-License-Identifier: Apache-2.0
"""How a pydantic model becomes a structural OpenAPI v3 schema, the only kind a CustomResourceDefinition takes.

Pydantic writes JSON Schema with ``$ref``, ``anyOf`` and ``null``; a structural schema knows none of these (KEP-1693).
Models therefore
say what Kubernetes needs through field metadata (`x`), and `structural` inlines references and drops what has no
meaning there.
"""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic.alias_generators import to_camel

Schema = dict[str, Any]
"""A JSON object that is a schema."""

QUANTITY = r"^([0-9]+(\.[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$"
"""A non-negative resource quantity without exponent or sub-unit suffix."""

QUANTITY_OR_PERCENT = r"^(([0-9]+(\.[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?|(100|[0-9]{1,2})(\.[0-9]+)?%)$"
"""A quantity as above, or a percentage from 0% to 100%."""

DURATION = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
"""A positive duration as Go's ``time.ParseDuration`` reads it, limited to the units people use here."""


class Model(pydantic.BaseModel):
    """Base of every API type: camelCase outside, snake_case inside, immutable, unknown fields refused."""

    model_config = pydantic.ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class ObservedModel(Model):
    """Base of types that are read from a server, where a newer version may have added fields: those are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore")


def structural(model: type[pydantic.BaseModel], *, defaults: bool = True) -> Schema:
    """Return the structural schema of `model`; without `defaults` the server fills in nothing, as fits a status.

    :raises ValueError: the model uses something a structural schema cannot say, for example a union of types.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    schema = _inline(raw, definitions=raw.get("$defs", {}), path=model.__name__)
    return schema if defaults else _without_defaults(schema)


_KEPT = frozenset({
    "type", "description", "default", "enum", "format", "pattern", "required", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
})  # fmt: skip


def _inline(schema: Schema, *, definitions: dict[str, Schema], path: str) -> Schema:
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    if "anyOf" in schema and not schema.get("x-kubernetes-int-or-string"):
        schema = _without_null(schema, path=path)
        return _inline(schema, definitions=definitions, path=path)
    result = {key: value for key, value in schema.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if result.get("default", ...) is None:
        del result["default"]
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "properties" in schema:
        result["properties"] = {
            name: _inline(field, definitions=definitions, path=f"{path}.{name}")
            for name, field in schema["properties"].items()
        }
    if "items" in schema:
        result["items"] = _inline(schema["items"], definitions=definitions, path=f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _inline(
            schema["additionalProperties"], definitions=definitions, path=f"{path}{{}}"
        )
    return result


def _without_defaults(schema: Schema) -> Schema:
    result = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in result:
        result["properties"] = {name: _without_defaults(field) for name, field in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = _without_defaults(result[key])
    return result


def _without_null(schema: Schema, *, path: str) -> Schema:
    kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
    if len(kinds) != 1:
        raise ValueError(f"{path}: a structural schema has no union of types: {schema['anyOf']}")
    only: Schema = kinds[0]
    return only | {key: value for key, value in schema.items() if key != "anyOf"}


def rule(expression: str, message: str, *, optional_old_self: bool = False) -> Schema:
    """Return one ``x-kubernetes-validations`` entry (KEP-2876)."""
    entry: Schema = {"rule": expression, "message": message}
    if optional_old_self:
        entry["optionalOldSelf"] = True
    return entry

"""JSON Schema: reading one, checking an answer against it, which fields and enumerations it names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vlmpeft.runtime.errors import UserError

MAX_DEPTH = 64  # of an answer's brackets: comparing deeper ones would exhaust Python's stack

Schema = dict[str, Any]
FieldPath = tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """One field of a schema.

    Args:
        enum: the values it may have, empty for any.
        many: the enumeration is of the elements of a list.
    """

    enum: tuple[Any, ...] = ()
    many: bool = False


def load_schema(schema: str | Path | Schema) -> Schema:
    """A JSON Schema from its file, or given inline.

    Raises:
        UserError: no such file, not JSON, not a schema, or a `$ref` that leads nowhere.
    """
    if isinstance(schema, dict):
        return _check_schema(schema, "the inline JSON Schema")
    try:
        text = Path(schema).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"JSON Schema {schema} cannot be read: {error}") from error
    try:
        return _check_schema(json.loads(text), f"JSON Schema {schema}")
    except json.JSONDecodeError as error:
        raise UserError(f"JSON Schema {schema} is not valid JSON: {error}") from error


def schema_violations(text: str, schema: Schema) -> str | None:
    """The first way in which a text breaks a schema of `load_schema`, in one line; None if it keeps it."""
    try:
        value = parse_json(text)
    except ValueError as error:
        return f"not valid JSON: {error}"
    return violation(value, schema)


def violation(value: Any, schema: Schema) -> str | None:
    """`schema_violations` of a parsed value."""
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY  # no reference is ever fetched

    try:
        errors = validator_for(schema)(schema, registry=REGISTRY).iter_errors(value)
        error = next(iter(errors), None)
    except (RecursionError, OverflowError) as problem:
        return f"cannot be checked: {problem}"
    return error and " ".join(f"{error.json_path}: {error.message}".split())[:300]


def parse_json(text: str) -> Any:
    """The value of a text that is one JSON value and nothing else but white space around it.

    Stricter than json.loads, as RFC 8259 has it: no NaN, no Infinity.

    Raises:
        ValueError: it is not.
    """
    try:
        value = json.loads(text.strip(), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return value


def schema_fields(schema: Schema) -> dict[FieldPath, Field]:
    """Every property that can hold a value of its own, nested ones by their path, in the schema's order."""
    return dict(_walk(schema, schema, (), ()))


def _walk(
    part: Any, root: Schema, path: FieldPath, above: tuple[int, ...]
) -> Iterator[tuple[FieldPath, Field]]:
    """Fields below a subschema; `above` are the schemas around it, which it may refer back to."""
    for owner in _variants(part, root):
        for key, child in owner.get("properties", {}).items():
            variants = list(_variants(child, root))
            recursive = any(id(variant) in above for variant in variants)
            nested = any("properties" in variant for variant in variants) and not recursive
            if nested:
                around = (*above, *(id(variant) for variant in variants))
                yield from _walk(child, root, (*path, key), around)
            if not nested or not _is_object_only(variants):
                yield (*path, key), _field(variants, root)


def _variants(part: Any, root: Schema) -> Iterator[Schema]:
    """The schema, what its `$ref` leads to, and every branch of its combinations, without repeats."""
    seen, waiting = set(), [part]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        branches = [b for key in ("allOf", "anyOf", "oneOf") for b in schema.get(key, [])]
        branches += [schema[key] for key in ("then", "else") if key in schema]
        branches += [_follow(schema["$ref"], root)] if "$ref" in schema else []
        waiting += reversed(branches)


def _follow(reference: str, root: Schema) -> Any:
    """What a reference of the form #/a/b points at; None for any other form."""
    target: Any = root
    if reference != "#" and not reference.startswith("#/"):
        return None
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        target = target[int(key)] if isinstance(target, list) else target.get(key)
    return target


def _is_object_only(variants: list[Schema]) -> bool:
    types = [variant["type"] for variant in variants if "type" in variant]
    return all(kind == "object" for kind in types)


def _field(variants: list[Schema], root: Schema) -> Field:
    enum = [value for variant in variants for value in _enum(variant)]
    if enum:
        return Field(tuple(enum))
    items = [v for variant in variants for v in _variants(variant.get("items"), root)]
    return Field(tuple(value for variant in items for value in _enum(variant)), many=True)


def _enum(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def _check_schema(schema: Any, where: str) -> Schema:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise UserError(f"{where} is no object but {json.dumps(schema)[:80]}")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise UserError(f"{where} is broken at {error.json_path}: {error.message}") from error
    _check_references(schema, where)
    return schema


def _check_references(schema: Schema, where: str) -> None:
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = REGISTRY.resolver_with_root(resource)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise UserError(
                f"{where}: $ref {reference!r} leads nowhere; it must point into the same schema"
            ) from error


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from _references(child)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [c for node in level for c in (node.values() if isinstance(node, dict) else node)]
    return depth


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")

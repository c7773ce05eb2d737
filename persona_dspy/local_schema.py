"""JSON Schemas for constrained decoding: bounds that stop a small model from running away, and the grammar they become.
Owns: schema rewriting. Not here: the engine (local_lm), what DSPy asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["bounded_schema", "constraint"]

_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_COMPACT = {
    *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"),
    *("enum", "const", "anyOf", "$defs", "$ref", "minLength", "maxLength", "minimum", "maximum"),
}
_MAX_ITEMS = 8
_MAX_INT = 10**15 - 1


def constraint(response_format: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    if response_format["type"] == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = bounded_schema(response_format["schema"], max_tokens=max_tokens)
    if _keywords(schema) <= _COMPACT:
        # One line of JSON: half the tokens of llama.cpp's own, freely spaced one.
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        text = json.dumps({**schema, "x-guidance": compact}, ensure_ascii=False)
        return {"grammar": "%llguidance {}\nstart: %json " + text}
    # NOTE footgun: llguidance ignores a grammar it cannot compile and the output is then free; llama.cpp's own
    # converter refuses, so whatever is outside the known keywords goes there.
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def bounded_schema(schema: Mapping[str, Any], *, max_tokens: int) -> dict[str, Any]:
    """A copy of a JSON Schema in which a small model cannot run away: free strings, lists and integers get an end.

    Bounds already there are kept, annotations dropped, property order kept. ``max_tokens`` is shared out among the
    free strings, at two characters a token, so that the closing brace comes before the limit.

    Example:
        >>> bounded_schema({"type": "object", "properties": {"a": {"type": "string"}}}, max_tokens=100)["properties"]
        {'a': {'type': 'string', 'maxLength': 168}}
    """
    free = max(1, _free_strings(schema, schema, frozenset()))
    length = max(16, (2 * max_tokens - 32) // free)
    return _bound(schema, min(length, 4000))


def _free_strings(node: Any, root: Mapping[str, Any], seen: frozenset[str]) -> int:
    if not isinstance(node, Mapping):
        return 0
    ref = node.get("$ref")
    if isinstance(ref, str):
        name = ref.rsplit("/", 1)[-1]
        return 0 if ref in seen else _free_strings(root.get("$defs", {}).get(name), root, seen | {ref})
    if node.get("type") == "string":
        return 0 if {"enum", "const", "maxLength", "format", "pattern"} & set(node) else 1
    count = sum(_free_strings(child, root, seen) for child in node.get("properties", {}).values())
    count += sum(_free_strings(child, root, seen) for child in node.get("prefixItems", ()))
    count += max((_free_strings(child, root, seen) for child in node.get("anyOf", ())), default=0)
    count += int(node.get("maxItems", _MAX_ITEMS)) * _free_strings(node.get("items"), root, seen)
    return count + _MAX_ITEMS * _free_strings(node.get("additionalProperties"), root, seen)


def _bound(node: Any, length: int) -> Any:
    if isinstance(node, list):
        return [_bound(child, length) for child in node]
    if not isinstance(node, Mapping):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            out[key] = {name: _bound(child, length) for name, child in value.items()}
        elif key in ("enum", "const", "required"):
            out[key] = value
        elif key not in _ANNOTATIONS:
            out[key] = _bound(value, length)
    kind = out.get("type")
    if "enum" in out or "const" in out:
        return out
    if kind == "string" and not {"maxLength", "format", "pattern"} & set(out):
        out["maxLength"] = length
    elif kind == "array":
        out.setdefault("maxItems", max(_MAX_ITEMS, int(out.get("minItems", 0))))
    elif kind == "integer":
        out.setdefault("minimum", -_MAX_INT)
        out.setdefault("maximum", _MAX_INT)
    return out


def _keywords(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*(_keywords(child) for child in node)) if node else set()
    if not isinstance(node, Mapping):
        return set()
    found = set(node)
    for key, value in node.items():
        if key in ("properties", "$defs"):
            found |= set().union(*(_keywords(child) for child in value.values())) if value else set()
        elif key not in ("enum", "const", "required"):
            found |= _keywords(value)
    return found

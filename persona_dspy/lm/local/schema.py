"""JSON Schemas for constrained decoding: bounds on what a small model may write, and llama.cpp's form of them.

DSPy's adapters check the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["bounded_schema", "constraint"]

_DROPPED = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"),
    *("uniqueItems", "propertyNames", "discriminator", "contentMediaType"),  # no grammar has them; pydantic checks
}
_COMPACT = {
    *("type", "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    *("items", "prefixItems", "minItems", "maxItems", "enum", "const", "anyOf", "oneOf", "allOf", "$defs", "$ref"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_FORMATS = {"date": 10, "time": 18, "date-time": 32, "uuid": 36}
_NAMED = ("properties", "patternProperties", "$defs")
_UNIONS = ("anyOf", "oneOf", "allOf")
_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CHARS_PER_TOKEN = 1  # the worst a looping small model does; English is about 4
_SHORTEST = 16
_KEY = r'^[^"\\\x00-\x1f]{1,40}$'
_MAX_INT = 10**15 - 1


def constraint(response_format: Mapping[str, Any], *, max_tokens: int) -> dict[str, Any]:
    """The part of llama.cpp's chat request that makes the answer follow lm15's ``response_format``.

    Compact JSON on one line wherever llguidance knows every keyword: about half the tokens of llama.cpp's freely
    spaced JSON. Anything else goes to llama.cpp's own converter, which refuses what it does not know.

    Raises nothing; a schema that llama.cpp cannot compile makes the engine raise.
    """
    if response_format["type"] == "json_object":
        schema = _map(_value(_CHARS_PER_TOKEN * max_tokens, depth=2), most=16)
    else:
        schema = bounded_schema(response_format["schema"], max_tokens=max_tokens)
    # NOTE footgun: a grammar llguidance cannot compile is silently ignored, and the output is free text.
    if _keywords(schema) <= _COMPACT and _refs(schema) <= {f"#/$defs/{name}" for name in schema.get("$defs", {})}:
        text = json.dumps({**schema, "x-guidance": _SPACES}, ensure_ascii=False)
        return {"grammar": "%llguidance {}\nstart: %json " + text}
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def bounded_schema(schema: Mapping[str, Any], *, max_tokens: int) -> dict[str, Any]:
    """A copy of a JSON Schema with upper bounds for strings, lists, maps and numbers, so that every answer ends.

    It keeps existing bounds and the order of properties, drops annotations, and forbids undeclared properties.
    ``max_tokens``, at one character a token, is divided from the root down: equally among the free fields of an object,
    then among the items of a list; a string gets at least 16 characters. Recursive schemas stay unbounded.

    Example:
        >>> bounded_schema({"type": "object", "properties": {"a": {"type": "string"}}}, max_tokens=100)["properties"]
        {'a': {'type': 'string', 'maxLength': 88}}
    """
    shares: dict[str, int] = {}
    out = _bound(schema, _CHARS_PER_TOKEN * max_tokens, shares)
    defs: dict[str, Any] = {}
    done: dict[str, int] = {}
    while shares != done:  # a definition's own references may lower other shares
        for name, share in list(shares.items()):
            if done.get(name) != share:
                done[name] = share
                if name in schema.get("$defs", {}):  # else the converter refuses the schema
                    defs[name] = _bound(schema["$defs"][name], share, shares)
    return {"$defs": defs, **out} if defs else out


def _bound(node: Mapping[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    out = {key: value for key, value in node.items() if key not in _DROPPED and key != "$defs"}
    if out.get("format") not in _FORMATS:
        out.pop("format", None)
    if "(?" in str(out.get("pattern", "")):
        del out["pattern"]
    if "enum" in out or "const" in out:
        return out
    if "$ref" in out:
        name = str(out["$ref"]).rsplit("/", 1)[-1]
        shares[name] = max(_SHORTEST, min(chars, shares.get(name, chars)))
        return out
    for union in _UNIONS:
        if union in out:
            out[union] = [_bound(branch, chars, shares) for branch in out[union]]
            return out
    kinds = out.get("type", "any")
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        out = _BOUNDS[kind](out, chars, shares) if kind in _BOUNDS else out
    return out


def _string(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    return out if {"maxLength", "format", "pattern"} & set(out) else {**out, "maxLength": max(_SHORTEST, chars - 2)}


def _integer(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    low = {} if "exclusiveMinimum" in out else {"minimum": out.get("minimum", -_MAX_INT)}
    high = {} if "exclusiveMaximum" in out else {"maximum": out.get("maximum", _MAX_INT)}
    return {**out, **low, **high}


def _number(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    return {**_integer(out, chars, shares), "multipleOf": out.get("multipleOf", 0.0001)}


def _array(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    if "prefixItems" in out:
        share = chars // max(1, len(out["prefixItems"])) - 2
        out["prefixItems"] = [_bound(item, share, shares) for item in out["prefixItems"]]
        if "items" not in out:
            return {**out, "maxItems": out.get("maxItems", len(out["prefixItems"]))}
    most = int(out.get("maxItems", max(int(out.get("minItems", 0)), 4, min(16, chars // 60))))
    items = out.get("items")
    bounded = _bound(items if isinstance(items, Mapping) else {}, (chars - 2) // max(1, most) - 2, shares)
    return {**out, "maxItems": most, "items": items if isinstance(items, bool) else bounded}


def _object(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    fields = out.get("properties", {})
    fixed = {name: _fixed(child) for name, child in fields.items()}
    spent = sum(len(name) + 6 + (fixed[name] or 0) for name in fields) + 3
    free = sum(size is None for size in fixed.values())
    extra = out.get("additionalProperties")
    if fields and not isinstance(extra, Mapping):
        extra = out["additionalProperties"] = False  # an answer has the fields that were asked for
    share = max(0, chars - spent) // max(1, free + (extra is not False))
    if fields:
        out["properties"] = {name: _bound(child, share, shares) for name, child in fields.items()}
    if extra is False:
        return out
    most = int(out.get("maxProperties", max(int(out.get("minProperties", 0)), 8)))
    value = _bound(extra if isinstance(extra, Mapping) else {}, share // most, shares)
    return {**out, **_map(value, most=most)}


def _anything(out: dict[str, Any], chars: int, shares: dict[str, int]) -> dict[str, Any]:
    return out or _value(chars, depth=2)


def _value(chars: int, *, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [{"type": "string", "maxLength": max(_SHORTEST, chars // 2)}]
    kinds += [_number({"type": "number"}, 0, {}), {"type": "boolean"}, {"type": "null"}]
    if depth:
        inner = _value(chars // 4, depth=depth - 1)
        kinds += [{"type": "array", "items": inner, "maxItems": 8}, _map(inner, most=8)]
    return {"anyOf": kinds}


def _map(value: dict[str, Any], *, most: int) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {_KEY: value},
        "maxProperties": most,
    }


_BOUNDS = {"string": _string, "integer": _integer, "number": _number, "array": _array, "object": _object}
_BOUNDS["any"] = _anything


def _fixed(node: Mapping[str, Any]) -> int | None:
    """Characters of a value that is bounded by itself; None where it takes a share."""
    if "enum" in node or "const" in node:
        return max(len(json.dumps(value)) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "string" and ("maxLength" in node or node.get("format") in _FORMATS):
        return int(node.get("maxLength", _FORMATS.get(str(node.get("format")), 0))) + 2
    return {"integer": 16, "number": 22, "boolean": 5, "null": 4}.get(str(node.get("type")))


def _children(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    children = [child for key in _NAMED for child in node.get(key, {}).values()]
    children += [child for key in (*_UNIONS, "prefixItems") for child in node.get(key, ())]
    children += [node[key] for key in ("items", "additionalProperties") if isinstance(node.get(key), Mapping)]
    return children


def _keywords(node: Mapping[str, Any]) -> set[str]:
    return set(node).union(*(_keywords(child) for child in _children(node)))


def _refs(node: Mapping[str, Any]) -> set[str]:
    own = {str(node["$ref"])} if "$ref" in node else set[str]()
    return own.union(*(_refs(child) for child in _children(node)))

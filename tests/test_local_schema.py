"""Bounds and grammars of constrained decoding. The longest answer a bounded schema allows is built and measured."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.lm.local.schema import bounded_schema, constraint


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


FREE = {"type": "string"}


def longest(node: Any, defs: dict[str, Any]) -> Any:
    """The longest value that a bounded schema allows."""
    if "$ref" in node:
        return longest(defs[node["$ref"].rsplit("/", 1)[-1]], defs)
    if "enum" in node:
        return max(node["enum"], key=lambda v: len(json.dumps(v)))
    if "anyOf" in node:
        return max((longest(b, defs) for b in node["anyOf"]), key=lambda v: len(json.dumps(v)))
    match node["type"]:
        case "string":
            return "x" * node["maxLength"]
        case "integer":
            return int(node["minimum"])
        case "boolean":
            return False
        case "null":
            return None
        case "array":
            return [longest(node["items"], defs)] * node["maxItems"]
        case "object":
            return {name: longest(child, defs) for name, child in node.get("properties", {}).items()}
    raise AssertionError(node)


def test_a_free_string_ends_before_the_tokens_do():
    out = bounded_schema(closed(a=FREE), max_tokens=100)
    assert len(json.dumps(longest(out, {}))) <= 100


def test_free_fields_share_the_tokens_and_a_list_does_not_starve_its_neighbour():
    rules = {"type": "array", "items": closed(when=FREE, why=FREE)}
    out = bounded_schema(closed(reasoning=FREE, rules=rules), max_tokens=1024)
    assert out["properties"]["reasoning"]["maxLength"] > 400
    assert out["properties"]["rules"]["maxItems"] >= 4


def test_bounds_order_and_labels_of_the_caller_are_kept():
    schema = closed(z={"type": "string", "maxLength": 9}, a={"enum": ["x", "y"], "title": "A"}, n={"type": "integer"})
    schema["properties"]["l"] = {"type": "array", "items": FREE, "maxItems": 2}
    out = bounded_schema(schema, max_tokens=512)
    assert list(out["properties"]) == ["z", "a", "n", "l"]
    assert out["properties"]["z"]["maxLength"] == 9
    assert out["properties"]["a"] == {"enum": ["x", "y"]}
    assert out["properties"]["l"]["maxItems"] == 2
    assert out["properties"]["n"]["maximum"] == 10**15 - 1


def test_input_is_not_changed():
    schema = closed(a=FREE, b={"type": "array", "items": FREE})
    before = json.dumps(schema)
    bounded_schema(schema, max_tokens=64)
    assert json.dumps(schema) == before


def test_definitions_get_the_smallest_share_of_those_who_refer_to_them():
    schema = {"$defs": {"R": closed(t=FREE)}, **closed(one={"$ref": "#/$defs/R"}, many={"type": "array"})}
    schema["properties"]["many"]["items"] = {"$ref": "#/$defs/R"}
    out = bounded_schema(schema, max_tokens=800)
    assert len(json.dumps(longest(out, out["$defs"]))) <= 800


def test_a_recursive_schema_ends_the_walk():
    node = closed(v=FREE, kids={"type": "array", "items": {"$ref": "#/$defs/N"}})
    out = bounded_schema({"$defs": {"N": node}, **closed(n={"$ref": "#/$defs/N"})}, max_tokens=512)
    assert out["$defs"]["N"]["properties"]["v"]["maxLength"] == 16


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    leaves = st.sampled_from([FREE, {"type": "boolean"}, {"type": "integer"}, {"enum": ["comedy", "drama"]}])
    if depth == 0:
        return draw(leaves)
    kind = draw(st.sampled_from(["leaf", "list", "object", "optional"]))
    if kind == "leaf":
        return draw(leaves)
    inner = schemas(depth=depth - 1)
    if kind == "list":
        return {"type": "array", "items": draw(inner), "maxItems": draw(st.integers(1, 4))}
    if kind == "optional":
        return {"anyOf": [draw(inner), {"type": "null"}]}
    names = draw(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=3, unique=True))
    return closed(**{name: draw(inner) for name in names})


@given(field=schemas(), max_tokens=st.integers(1500, 4000))
@settings(deadline=None, max_examples=150)
def test_every_allowed_answer_fits_the_tokens_at_one_character_each(field: dict[str, Any], max_tokens: int):
    out = bounded_schema(closed(answer=field), max_tokens=max_tokens)
    assert len(json.dumps(longest(out, {}))) <= max_tokens


def grammar(schema: dict[str, Any]) -> dict[str, Any]:
    part = constraint({"type": "json_schema", "schema": schema}, max_tokens=256)
    assert set(part) == {"grammar"}, part
    return json.loads(part["grammar"].split("%json ", 1)[1])


def test_known_keywords_become_a_compact_grammar_and_annotations_go():
    out = grammar({**closed(tag={"enum": ["horror"], "title": "Tag"}), "title": "Out", "description": "d"})
    assert out["x-guidance"]["whitespace_flexible"] is False
    assert "title" not in json.dumps({k: v for k, v in out.items() if k != "x-guidance"})


def test_what_llguidance_would_silently_ignore_goes_to_the_strict_converter():
    for field in ({"not": {"type": "null"}}, {"$ref": "#/$defs/Gone"}, {"if": {}, "then": {}}):
        part = constraint({"type": "json_schema", "schema": closed(a=field)}, max_tokens=64)
        assert set(part) == {"response_format"}, field


def test_formats_and_patterns_no_grammar_has_become_bounded_strings():
    out = grammar(closed(u={"type": "string", "format": "uri"}, p={"type": "string", "pattern": "^(?=x)y"}))
    assert set(out["properties"]["u"]) == {"type", "maxLength"}
    assert set(out["properties"]["p"]) == {"type", "maxLength"}


def test_undeclared_fields_are_shut_out_and_maps_have_an_end():
    out = grammar({"type": "object", "properties": {"a": FREE}, "required": ["a"]})
    assert out["additionalProperties"] is False
    out = grammar(closed(m={"type": "object", "additionalProperties": {"type": "integer"}}))
    assert out["properties"]["m"]["maxProperties"] == 8


def test_json_object_is_any_object_with_an_end():
    part = constraint({"type": "json_object"}, max_tokens=256)
    body = json.loads(part["grammar"].split("%json ", 1)[1])
    assert body["type"] == "object" and body["maxProperties"] == 16

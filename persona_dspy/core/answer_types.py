"""Declared types of answers: what is inside ``Annotated`` and ``Optional``, and an answer of any type as text."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, time
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from persona_dspy.core.erasure import remember
from persona_dspy.core.scales import written

__all__ = ["SEQUENCES", "adapter_of", "answer_text", "is_many", "is_optional", "is_subclass", "unwrapped"]

SEQUENCES = (list, tuple, set, frozenset)


def answer_text(value: Any) -> str:
    """An answer of any type as text: an Enum by its value, lists and objects as JSON.

    Example:
        >>> answer_text([1, "a"]), answer_text(None), answer_text(4.0)
        ('[1, "a"]', 'None', '4')
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        return value
    if isinstance(value, Enum):
        return answer_text(value.value) if isinstance(value.value, str | int | float) else value.name
    if isinstance(value, float) and math.isfinite(value):
        return written(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"), ensure_ascii=False)
    if isinstance(value, list | tuple | set | frozenset | Mapping) or (
        is_dataclass(value) and not isinstance(value, type)
    ):
        plain = TypeAdapter(type(value)).dump_python(value, mode="json", fallback=str)
        return json.dumps(sorted(plain, key=str) if isinstance(value, set | frozenset) else plain, ensure_ascii=False)
    return str(value)


def unwrapped(annotation: Any, bounds: Sequence[Any] = ()) -> tuple[Any, tuple[Any, ...]]:
    """The type inside ``Annotated`` and ``Optional``, and the constraints met on the way."""
    found = list(bounds)
    while True:
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            annotation = arguments[0]
            for extra in arguments[1:]:
                found += getattr(extra, "metadata", None) or [extra]
            continue
        inner = [a for a in arguments if a is not type(None)]
        if get_origin(annotation) in (Union, types.UnionType) and len(inner) == 1:
            annotation = inner[0]
            continue
        return annotation, tuple(found)


def is_optional(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return is_optional(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return None in get_args(annotation)
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def is_subclass(plain: Any, base: type) -> bool:
    return isinstance(plain, type) and get_origin(plain) is None and issubclass(plain, base)


def is_many(plain: Any) -> bool:
    return (get_origin(plain) or plain) in SEQUENCES


@remember(maxsize=256)
def adapter_of(plain: Any) -> TypeAdapter[Any]:
    return TypeAdapter(plain)

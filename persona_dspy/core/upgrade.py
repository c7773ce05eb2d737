"""Reads persona lines of the format ``persona-dspy/persona/1``, in which code read its own sentences back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["OLD_SCHEMA", "OLD_SECTIONS", "upgraded", "upgraded_document"]

OLD_SCHEMA = "persona-dspy/persona/1"

OLD_SECTIONS = {"decision rules": "what decides", "search hints": "look-ups"}

_COUNTED = re.compile(r'"([^"]+)" (\d+) times?\b')
_TOTAL = re.compile(r"Answered (\d+) times so far: ")
_SHIFT = re.compile(r"Rates (\d+(?:\.\d+)?) (higher|lower) than you would think")
_PHRASE = re.compile(r'(Starts|Ends) with "([^"]+)"')
_FIELDS: dict[str, Any] = {
    "section": "", "text": "", "when": "", "then": "", "evidence": (), "hits": 0, "locked": False, "source": "given",
    "created": "", "id": "",
}  # fmt: skip


def upgraded(values: Any) -> Any:
    """The fields of a line as they are today: those of a line written as persona/1, with what its sentence says as
    typed values; anything else unchanged.

    Example:
        >>> old = dict.fromkeys(("text", "id", "created"), "") | {"hits": 2, "evidence": (), "locked": False}
        >>> old |= {"section": "decision rules", "when": 'it mentions "ghost"', "then": "comedy", "source": "learned"}
        >>> new = upgraded(old)
        >>> new["section"], new["words"]
        ('what decides', ('ghost',))
    """
    if not isinstance(values, Mapping):
        return values
    if set(values) != set(_FIELDS):  # persona/1 wrote all of its fields, and no other
        return values
    section = values["section"]
    line = dict(values) | {"section": OLD_SECTIONS.get(section, section) if isinstance(section, str) else section}
    text = str(line["text"])
    if line["when"]:
        line["words"] = tuple(re.findall(r'"([^"]+)"', str(line["when"]).lower()))
        line["text"] = f'If {line["when"]}, answer "{line["then"]}".'
    elif total := _TOTAL.match(text):
        each = tuple((label, int(times)) for label, times in _COUNTED.findall(text))
        line["counts"] = {"total": int(total[1]), "each": each}
    elif shift := _SHIFT.match(text):
        line["shift"] = float(shift[1]) * (1 if shift[2] == "higher" else -1)
    elif phrase := _PHRASE.match(text):
        line["opening" if phrase[1] == "Starts" else "ending"] = phrase[2]
    return line


def upgraded_document(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a persona/1 file as those of today; what is wrong in it stays for whoever checks the fields."""
    sections = data.get("sections", ())
    if isinstance(sections, list) and all(isinstance(s, Mapping) for s in sections):
        sections = [_section(section) for section in sections]
    return {**data, "sections": sections}


def _section(values: Mapping[str, Any]) -> Mapping[str, Any]:
    name, lines = values.get("name"), values.get("bullets")
    if not isinstance(lines, list):
        return values
    renamed = OLD_SECTIONS.get(name, name) if isinstance(name, str) else name
    return {**values, "name": renamed, "bullets": [_line(line, values) for line in lines]}


def _line(values: Any, section: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping) or not set(values) <= set(_FIELDS):
        return values
    return upgraded({**_FIELDS, "section": section.get("name"), **values})

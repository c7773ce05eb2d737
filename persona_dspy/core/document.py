"""Persona JSON, the file that is shipped: the format ``persona-dspy/persona/2`` and its JSON Schema.

A program in another language needs only ``system_prompt``: the exact text of the persona. DSPy's own checkpoints
(``program.save``) are something else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_dspy.core.alignment import Alignment
from persona_dspy.core.disk import persona_path, write_text
from persona_dspy.core.html import alignment_html, persona_html
from persona_dspy.core.marks import printable
from persona_dspy.core.persona import SCHEMA, SECTIONS, Bullet, Persona, Section
from persona_dspy.core.upgrade import OLD_SCHEMA, upgraded_document
from persona_dspy.errors import InputError, PersonaFormatError

__all__ = [
    "SCHEMA",
    "PersonaDocument",
    "json_schema",
    "load_document",
    "load_persona",
    "read_document",
    "save_persona",
]


_VERSIONS = 2**31  # a store keeps none from there on


class SectionDocument(BaseModel):
    """One section with its bullets, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Section
    bullets: tuple[Bullet, ...]


class PersonaDocument(BaseModel):
    """A persona as a file. ``system_prompt`` is the rendered persona; ``model``, ``task``: what it was made with."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["persona-dspy/persona/2"] = Field(default=SCHEMA, alias="schema")
    user_id: str = Field(min_length=1)
    version: int = Field(ge=0)
    parent: int | None = None
    created_at: str
    sections: tuple[SectionDocument, ...] = ()
    system_prompt: str = ""
    task: str | None = None
    model: str | None = None
    alignment: Alignment | None = None

    @classmethod
    def of(
        cls, persona: Persona, *, alignment: Alignment | None = None, task: str | None = None, model: str | None = None
    ) -> PersonaDocument:
        """The document of a persona."""
        sections = [SectionDocument(name=s, bullets=persona.section(s)) for s in SECTIONS if persona.section(s)]
        return cls(
            user_id=persona.user_id,
            version=persona.version,
            parent=persona.parent,
            created_at=persona.created_at,
            sections=tuple(sections),
            system_prompt=persona.render(),
            task=task,
            model=model,
            alignment=alignment,
        )

    def persona(self) -> Persona:
        """The persona, rendering to ``system_prompt`` to the byte.

        Raises:
            PersonaFormatError: the sections render to another text: the file was edited by hand.
        """
        persona = self.of_sections()
        if persona.render() != self.system_prompt:
            raise PersonaFormatError(
                f"persona of user {self.user_id!r}: its sections and its system_prompt say different things; "
                "expected the file as it was exported; edit a persona with Persona.apply or from_text instead"
            )
        return persona

    def _repr_html_(self) -> str:
        shown = persona_html(self.of_sections())
        return f"{shown}<hr>{alignment_html(self.alignment)}" if self.alignment else shown

    def of_sections(self) -> Persona:
        """The persona that the sections hold, whatever ``system_prompt`` says."""
        return Persona(
            user_id=self.user_id,
            bullets=tuple(b for s in self.sections for b in s.bullets),
            version=self.version,
            parent=self.parent,
            created_at=self.created_at,
        )

    def to_json(self) -> str:
        """Indented JSON text with a final line break; keys in the order of the schema."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=2) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the current format (published as ``persona_dspy/core/schemas/persona-2.schema.json``)."""
    schema = PersonaDocument.model_json_schema(by_alias=True, mode="serialization")
    for part in (schema, *schema["$defs"].values()):  # descriptions are docstrings; their Python examples stay here
        if "description" in part:
            part["description"] = part["description"].partition("\n\nExample:")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}


def save_persona(
    persona: Persona,
    path: str | os.PathLike[str],
    *,
    alignment: Alignment | None = None,
    task: str | None = None,
    model: str | None = None,
) -> Path:
    """Write a persona JSON, whole or not at all. A directory as path gets ``persona_file_name(user_id)``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_persona(Persona.from_text("Prefers short answers.", user_id="u1"), folder).name
        'u1-bb82030d.json'
    """
    target = persona_path(path, persona.user_id)
    write_text(target, PersonaDocument.of(persona, alignment=alignment, task=task, model=model).to_json())
    return target


def load_document(path: str | os.PathLike[str]) -> PersonaDocument:
    """Read a persona JSON with everything in it.

    Raises:
        PersonaFormatError: not there, not JSON, another schema, a missing or wrong field (named), half a surrogate
            pair, a version of 2**31 or more, a section over its cap of tokens.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise PersonaFormatError(
            f"{str(path)!r}: no such file; expected a persona JSON, such as personas/u1.json"
        ) from None
    except OSError as failure:
        raise PersonaFormatError(f"{str(path)!r}: cannot be read ({failure}); expected a persona JSON") from None
    return read_document(content, str(path))


def read_document(content: bytes, name: str) -> PersonaDocument:
    """A document from a file's bytes; ``name`` is the file's, for errors.

    Raises:
        PersonaFormatError: as ``load_document``.
    """
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as failure:
        raise PersonaFormatError(f"{name!r}: cannot be read ({failure}); expected a persona JSON") from None
    except RecursionError:
        raise PersonaFormatError(f"{name!r}: nested too deeply; expected a persona JSON") from None
    except json.JSONDecodeError as failure:
        raise PersonaFormatError(f"{name!r}: not JSON, line {failure.lineno}: {failure.msg}") from None
    except ValueError as failure:  # a number of thousands of digits
        raise PersonaFormatError(f"{name!r}: {failure}; expected a persona JSON") from None
    if (field := _field_with_surrogate(data)) is not None:
        raise PersonaFormatError(
            f"{name!r}: field {printable(field)!r} holds half a surrogate pair; expected text that UTF-8 can hold"
        )
    document = parse_document(data, name)
    for field, number in (("version", document.version), ("parent", document.parent or 0)):
        if number >= _VERSIONS:
            raise PersonaFormatError(f"{name!r}: field {field!r}: {number}; expected a number below 2**31")
    try:
        document.of_sections().check_sizes()
    except InputError as refusal:
        raise PersonaFormatError(f"{name!r}: {refusal}") from None
    return document


def _field_with_surrogate(data: Any) -> str | None:
    """Where the first lone surrogate of parsed JSON is, such as ``sections.0.bullets.0.text``; None where none is."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
        return None
    except UnicodeEncodeError:
        left: list[tuple[str, Any]] = [("", data)]
    for where, value in left:
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            return where
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in inner:
            place = f"{where}.{key}" if where else str(key)
            left += [(place, key), (place, part)]
    return None


def parse_document(data: Any, name: str = "<persona>") -> PersonaDocument:
    """A document from parsed JSON; older schemas are upgraded first.

    A document that an older version wrote is read as today's rules for texts have it: half a surrogate pair becomes
    U+FFFD, and where lines are cleaned of more than they were, ``system_prompt`` is too.
    """
    if _field_with_surrogate(data) is not None:
        whole = json.dumps(data, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        data = json.loads(whole)
    schema = data.get("schema") if isinstance(data, dict) else None
    old = schema == OLD_SCHEMA
    if old:
        data = upgraded_document(data) | {"schema": SCHEMA}
    elif schema != SCHEMA:
        raise PersonaFormatError(
            f"{name}: schema {schema!r}; expected {SCHEMA!r}" + (", upgrade persona-dspy to read it" if schema else "")
        )
    try:
        document = PersonaDocument.model_validate(data)
        return _in_order_of_today(document) if old else _cleaned_as_today(document, data)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PersonaFormatError(f"{name}: field {where!r}: {first['msg']}, got {first.get('input')!r:.80}") from None


def _cleaned_as_today(document: PersonaDocument, data: dict[str, Any]) -> PersonaDocument:
    """A document whose prompt says what its own lines said, before they were cleaned, with the prompt cleaned as they
    are; any other keeps it, for ``persona()`` to refuse."""
    prompt = document.of_sections().render()
    if prompt == document.system_prompt:
        return document
    lines = [line for section in data.get("sections", ()) for line in section["bullets"]]
    written = tuple(Bullet.model_construct(**line) for line in lines if isinstance(line, dict) and "section" in line)
    as_written = document.of_sections().model_copy(update={"bullets": written}).render()
    return document.model_copy(update={"system_prompt": prompt}) if as_written == document.system_prompt else document


def _in_order_of_today(document: PersonaDocument) -> PersonaDocument:
    """A persona/1 document with its sections, and so its system prompt, in today's order; one whose prompt says
    something else than its sections keeps it, for ``persona()`` to refuse."""
    sections = tuple(sorted(document.sections, key=lambda s: SECTIONS.index(s.name)))
    ordered = document.model_copy(update={"sections": sections})
    prompt = ordered.of_sections().render()
    alike = sorted(prompt.split("\n\n")) == sorted(document.system_prompt.split("\n\n"))
    return ordered.model_copy(update={"system_prompt": prompt}) if alike else ordered


def load_persona(path: str | os.PathLike[str], *, user_id: str | None = None) -> Persona:
    """Read a persona JSON.

    Args:
        user_id: whose it has to be; None = anybody's.

    Raises:
        PersonaFormatError: as ``load_document``.
        InputError: it is another user's.

    Example:
        >>> import tempfile
        >>> given = Persona.from_text("Prefers short answers.", user_id="u1")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_persona(save_persona(given, folder)) == given
        True
    """
    persona = load_document(path).persona()
    if user_id is not None and persona.user_id != user_id:
        raise InputError(f"{str(path)!r} holds the persona of user {persona.user_id!r}: expected user {user_id!r}")
    return persona

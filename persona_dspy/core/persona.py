"""The persona: a user's own system prompt as an immutable value."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from persona_dspy.core.disk import persona_path, write_text
from persona_dspy.core.html import diff_html, persona_html
from persona_dspy.core.text import clip_tokens, count_tokens, id_lines, mentions, one_line
from persona_dspy.core.upgrade import OLD_SECTIONS, upgraded
from persona_dspy.core.words import is_spaceless, split_words
from persona_dspy.errors import InputError

__all__ = [
    "SCHEMA",
    "SECTIONS",
    "Bullet",
    "Counts",
    "Edit",
    "Persona",
    "PersonaDiff",
    "Section",
    "Strength",
]

SCHEMA = "persona-dspy/persona/2"

Section = Literal["who", "what decides", "preferences", "style", "look-ups"]
SECTIONS: tuple[Section, ...] = get_args(Section)
Source = Literal["fact", "summary", "learned", "given"]
Strength = Literal["", "weak", "clear", "strong"]

SECTION_TOKENS = 800  # of any persona; what an LM's context has room for may be less (``lm.Sizes``)
BULLET_TOKENS = 128

NOTHING_ELSE = "nothing else fits"
_OPENING = "You answer for one particular user. Answer as this user would."
_TITLES: dict[Section, str] = {
    "who": "Who this user is",
    "what decides": "How this user decides",
    "preferences": "What this user prefers",
    "style": "How this user writes",
    "look-ups": "What to look up for this user",
}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _line(text: str) -> str:
    return clip_tokens(one_line(text), BULLET_TOKENS)


class Counts(BaseModel):
    """How often a user gave each response: ``each`` pairs of (response, times), commonest first, out of ``total``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: int = Field(ge=0)
    each: tuple[tuple[str, int], ...]


class Bullet(BaseModel):
    """One line of a persona: a plain sentence, ``text``, and beside it what code may act on. The text is never parsed.

    Args:
        text: the sentence; made from ``words`` or ``when``, and ``then``, where none is given.
        when, then: condition and response of a decision rule; both or none.
        words: words of a query, in lower case, any one of which meets the condition; ``when`` is made from them.
        counts: how often each response was given.
        opening, ending: words that most of the user's texts begin or end with.
        shift: by how much the user rates higher (below 0: lower) than one would think.
        evidence: ids of the user's interactions that bear the line out, the latest few.
        hits: how many bear it out in all.
        strength: how well it is borne out, as the LM that wrote it says: ``weak`` is rendered behind the line.
        locked: the line is the user's; no optimizer may touch it.
        source: ``fact`` counted by code, ``summary`` written by an LM from memory, ``learned`` by alignment, ``given``
            by a person.

    Example:
        >>> Bullet(section="what decides", words=("space", "orbit"), then="sci-fi").sentence
        'If it mentions "space" or "orbit", answer "sci-fi".'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    section: Section
    text: str = ""
    when: str = ""
    then: str = ""
    words: tuple[str, ...] = ()
    counts: Counts | None = None
    opening: str = ""
    ending: str = ""
    shift: float | None = None
    evidence: Annotated[tuple[str, ...], AfterValidator(id_lines)] = ()
    hits: int = Field(default=0, ge=0)
    strength: Strength = ""
    locked: bool = False
    source: Source = "given"
    created: str = Field(default_factory=_now)
    id: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, values: Any) -> Any:
        return upgraded(values)

    @field_validator("text", "when", "then", "opening", "ending", "id")
    @classmethod
    def _is_one_line_of_data(cls, value: str) -> str:
        return _line(value)

    @field_validator("words")
    @classmethod
    def _are_plain_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for raw in value if (word := one_line(raw).lower().replace('"', "'"))))

    @model_validator(mode="after")
    def _says_something(self) -> Bullet:
        if self.words and not self.when:
            object.__setattr__(self, "when", _line(mentions(self.words)))
        if bool(self.when) != bool(self.then):
            raise ValueError(f"a decision rule needs both when and then, got when={self.when!r}, then={self.then!r}")
        if not self.text and not self.when:
            raise ValueError("a bullet needs text, or when and then")
        if not self.text:
            object.__setattr__(self, "text", _line(f'If {self.when}, answer "{self.then}".'))
        if not self.id:
            digest = sha256(f"{self.section}\0{self.text}".encode()).hexdigest()
            object.__setattr__(self, "id", digest[:8])
        return self

    @property
    def is_default(self) -> bool:
        """A decision rule for what no other rule covers."""
        return self.when == NOTHING_ELSE

    def fits(self, words: Collection[str]) -> bool:
        """Whether one of ``words`` (lower case) meets a decision rule's condition; in a script without spaces they are
        pairs of characters, and all those of the condition's word have to be there."""
        return any(
            word in words or (is_spaceless(word) and all(pair in words for pair in split_words(word)))
            for word in self.words
        )

    def naming(self, words: Sequence[str], **changes: Any) -> Bullet:
        """The same line, with the same id, for other ``words``; its text and condition are made anew."""
        values = self.model_dump(exclude={"text", "when", "words"}) | changes
        return Bullet(**values, words=tuple(words))

    @property
    def sentence(self) -> str:
        """The line as rendered."""
        return f"{self.text} (weak evidence)" if self.strength == "weak" else self.text


class Edit(BaseModel):
    """A delta to a persona: ``add`` a bullet, ``revise`` the one with ``id``, or ``drop`` it.

    Example:
        >>> Edit(op="add", bullet=Bullet(section="style", text="Writes in lower case.")).sentence
        'add Writes in lower case.'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: Literal["add", "revise", "drop"]
    bullet: Bullet | None = None
    id: str = ""

    @property
    def sentence(self) -> str:
        """One line for people and for the list of rejected edits."""
        return f"{self.op} {self.bullet.sentence if self.bullet else self.id}"


class PersonaDiff(BaseModel):
    """What changed from one persona to another, as bullets; ``str()`` gives +/-/~ lines."""

    model_config = ConfigDict(frozen=True)

    added: tuple[Bullet, ...] = ()
    dropped: tuple[Bullet, ...] = ()
    revised: tuple[tuple[Bullet, Bullet], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped or self.revised)

    def _repr_html_(self) -> str:
        return diff_html(self)

    def __str__(self) -> str:
        lines = [f"- [{b.section}] {b.sentence}" for b in self.dropped]
        lines += [f"~ [{new.section}] {old.sentence} -> {new.sentence}" for old, new in self.revised]
        lines += [f"+ [{b.section}] {b.sentence}" for b in self.added]
        return "\n".join(lines)


class Persona(BaseModel):
    """One version of one user's persona. Immutable; ``apply`` and ``with_facts`` return new values.

    ``version`` counts from 0 (the initial persona); ``parent`` is the version it came from, None for the first.

    Example:
        >>> p = Persona.from_text("Prefers short answers.", user_id="u1")
        >>> print(p.render())
        You answer for one particular user. Answer as this user would.
        <BLANKLINE>
        What this user prefers:
        - Prefers short answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: str = Field(min_length=1)
    bullets: tuple[Bullet, ...] = ()
    version: int = Field(default=0, ge=0)
    parent: int | None = None
    created_at: str = Field(default_factory=_now)

    @classmethod
    def from_text(cls, text: str, *, user_id: str, source: Source = "given", like: Persona | None = None) -> Persona:
        """A persona from plain text: one bullet a line; a line that names a section (``Style:``) opens it.

        With ``like``, version and parent follow that persona, and its locked bullets stay.

        Raises:
            InputError: the text holds nothing, or a section would be over its cap of ``SECTION_TOKENS``.
        """
        section: Section = "preferences"
        bullets = [b for b in like.bullets if b.locked] if like else []
        ids = {b.id for b in bullets}
        for raw in text.splitlines():
            line = one_line(raw).lstrip("-*# ").strip()
            if heading := _HEADINGS.get(line.rstrip(":").strip().lower()):
                section = heading
            elif line and line != _OPENING:
                bullet = Bullet(section=section, text=line, source=source)
                if bullet.id not in ids:
                    bullets.append(bullet)
                    ids.add(bullet.id)
        if not bullets:
            raise InputError(f"persona text {text!r}: expected at least one line about the user")
        version, parent = (like.version + 1, like.version) if like else (0, None)
        new = cls(user_id=user_id, bullets=tuple(bullets), version=version, parent=parent)
        new.check_sizes(like)
        return new

    def check_sizes(self, before: Persona | None = None) -> None:
        """Sections over the cap are refused, but for one that was as long in ``before``.

        Raises:
            InputError: a section holds more than ``SECTION_TOKENS`` estimated tokens.
        """
        for name in SECTIONS:
            used = sum(count_tokens(b.sentence) for b in self.section(name))
            known = sum(count_tokens(b.sentence) for b in before.section(name)) if before else 0
            if used > SECTION_TOKENS and used > known:
                raise InputError(
                    f"section {name!r} would hold {used} tokens: expected at most {SECTION_TOKENS}; keep what matters"
                )

    def _repr_html_(self) -> str:
        return persona_html(self)

    def section(self, name: Section) -> tuple[Bullet, ...]:
        """The bullets of one section, in order."""
        return tuple(b for b in self.bullets if b.section == name)

    def render(self) -> str:
        """The system prompt: an opening sentence and a list per section; empty text for a persona without bullets."""
        if not self.bullets:
            return ""
        parts = [_OPENING]
        for name in SECTIONS:
            if bullets := self.section(name):
                parts.append(f"{_TITLES[name]}:\n" + "\n".join(f"- {b.sentence}" for b in bullets))
        return "\n\n".join(parts)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The persona JSON (``PersonaDocument``), also written to ``path`` where one is given, whole or not at all.

        A directory as ``path`` gets ``persona_file_name(user_id)``.
        """
        sections = [(name, self.section(name)) for name in SECTIONS]
        fields = {
            "schema": SCHEMA,
            "user_id": self.user_id,
            "version": self.version,
            "parent": self.parent,
            "created_at": self.created_at,
            "sections": [{"name": s, "bullets": [b.model_dump(mode="json") for b in bs]} for s, bs in sections if bs],
            "system_prompt": self.render(),
            "task": None,
            "model": None,
            "alignment": None,
        }
        text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
        if path is not None:
            write_text(persona_path(path, self.user_id), text)
        return text

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal exactly where two personas behave alike: where the rendered text and what
        steers recall beside it (words, responses, counts) are equal."""
        steering = [(b.words, b.then, b.counts.model_dump() if b.counts else None) for b in self.bullets]
        return sha256(f"{self.render()}\0{steering if any(map(any, steering)) else ''}".encode()).hexdigest()[:12]

    def apply(self, edits: Iterable[Edit]) -> Persona:
        """The next version: this one with the edits, in order.

        Raises:
            InputError: an edit names an unknown or a locked bullet, repeats a bullet, or puts a section over its
                cap of ``SECTION_TOKENS`` estimated tokens.
        """
        bullets = {b.id: b for b in self.bullets}
        for edit in edits:
            target = bullets.get(edit.id)
            if edit.op != "add":
                if target is None:
                    raise InputError(f"edit of bullet {edit.id!r}: expected one of {sorted(bullets)}")
                if target.locked:
                    raise InputError(f"edit of bullet {edit.id!r}: it is locked by its user")
            if edit.op == "drop":
                del bullets[edit.id]
                continue
            if edit.bullet is None:
                raise InputError(f"edit {edit.op!r}: expected a bullet")
            if edit.op == "revise":
                bullets[edit.id] = edit.bullet.model_copy(update={"id": edit.id})
            elif edit.bullet.id in bullets:
                raise InputError(f"edit adds bullet {edit.bullet.sentence!r}: the persona has it already")
            else:
                bullets[edit.bullet.id] = edit.bullet
        return self._next(bullets.values())

    def with_facts(self, facts: Sequence[Bullet]) -> Persona:
        """The same version with its ``fact`` bullets replaced: facts follow memory, they are not learned. One that says
        the same as before keeps its time, one that the user locked stays as it is."""
        rest = [b for b in self.bullets if b.source != "fact" or b.locked]
        names, before = {b.id for b in rest}, {b.id: b.created for b in self.bullets if b.source == "fact"}
        fresh = [b.model_copy(update={"created": before.get(b.id, b.created)}) for b in facts if b.id not in names]
        return self.model_copy(update={"bullets": tuple(_in_section_order([*fresh, *rest]))})

    def line(self, name: str) -> Bullet:
        """The line of that id, else the only one whose sentence has ``name`` in it, upper and lower case alike.

        Raises:
            InputError: none, or several.
        """
        named = [b for b in self.bullets if b.id == name]
        named = named or [b for b in self.bullets if name.strip() and name.strip().lower() in b.sentence.lower()]
        if len(named) == 1:
            return named[0]
        lines = "; ".join(f"{b.id} {b.sentence[:60]}" for b in named or self.bullets)
        several = f"is in {len(named)} lines" if named else "no such line"
        raise InputError(
            f"line {name!r} of user {self.user_id!r}: {several}; expected an id or words of one of: {lines}"
        )

    def add(self, text: str, *, section: Section = "preferences", locked: bool = True) -> Persona:
        """The next version, with a line that a person wrote; locked, unless told otherwise: no optimizer touches it.

        Raises:
            InputError: no text, a line that is there already, no such section, or a section that is full.

        Example:
            >>> persona = Persona(user_id="u1").add("Never mention prices.", section="style")
            >>> persona.version, persona.bullets[0].locked, persona.bullets[0].source
            (1, True, 'given')
        """
        if section not in SECTIONS:
            raise InputError(f"section {section!r}: expected one of {list(SECTIONS)}")
        if not one_line(text):
            raise InputError(f"line {text!r}: expected a sentence about the user")
        return self.apply([Edit(op="add", bullet=Bullet(section=section, text=text, locked=locked))])

    def revise(self, line: str, text: str) -> Persona:
        """The next version, with other words for a line (its id, or words of it), which is then a person's, and
        locked; for people: a locked line can be revised too.

        Raises:
            InputError: no such line, or no text.
        """
        old = self.line(line)
        if not one_line(text):
            raise InputError(f"line {text!r}: expected a sentence about the user")
        new = Bullet(section=old.section, text=text, locked=True, id=old.id)
        return self._next(new if b.id == old.id else b for b in self.bullets)

    def drop(self, line: str) -> Persona:
        """The next version, without a line (its id, or words of it); for people: a locked line goes too."""
        gone = self.line(line).id
        return self._next(b for b in self.bullets if b.id != gone)

    def lock(self, line: str, *, locked: bool = True) -> Persona:
        """The next version, with a line (its id, or words of it) that no optimizer may touch."""
        which = self.line(line).id
        return self._next(b.model_copy(update={"locked": locked}) if b.id == which else b for b in self.bullets)

    def unlock(self, line: str) -> Persona:
        """The next version, with a line that optimizers may touch again.

        Example:
            >>> persona = Persona(user_id="u1").add("Never mention prices.").unlock("prices")
            >>> persona.version, persona.bullets[0].locked
            (2, False)
        """
        return self.lock(line, locked=False)

    def diff(self, other: Persona) -> PersonaDiff:
        """What turns this persona into ``other``; evidence and hit counts do not count as changes."""
        before, after = {b.id: b for b in self.bullets}, {b.id: b for b in other.bullets}
        both = [(before[i], after[i]) for i in before if i in after]
        return PersonaDiff(
            added=tuple(b for i, b in after.items() if i not in before),
            dropped=tuple(b for i, b in before.items() if i not in after),
            revised=tuple((a, b) for a, b in both if (a.sentence, a.locked) != (b.sentence, b.locked)),
        )

    def _next(self, bullets: Iterable[Bullet]) -> Persona:
        ordered = tuple(_in_section_order(bullets))
        new = Persona(user_id=self.user_id, bullets=ordered, version=self.version + 1, parent=self.version)
        new.check_sizes(self)
        return new


def _in_section_order(bullets: Iterable[Bullet]) -> list[Bullet]:
    return sorted(bullets, key=lambda b: SECTIONS.index(b.section))


_HEADINGS: dict[str, Section] = {
    **{name: name for name in SECTIONS},
    **{title.lower(): name for name, title in _TITLES.items()},
    **OLD_SECTIONS,  # type: ignore[dict-item]
}

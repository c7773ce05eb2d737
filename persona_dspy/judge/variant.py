"""Which systems are compared, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_dspy.errors import InputError

__all__ = ["ABLATIONS", "CONTROL", "OPTIMIZED", "REFERENCES", "RETRIEVALS", "SYSTEMS", "Variant", "variants"]

SYSTEMS = ("persona", "direct", "icl", "rag", "pag", "react", "membank")
OPTIMIZED = {
    "as-in-paper": "the paper's agent and alignment: sentence vectors, tools at each step, an LM's summary, no gate",
    "textgrad": "whole rewrites from a textual gradient for each mistake, kept where held-out answers get better",
    "gepa": "GEPA's search over the persona's text, with our judge",
    "portrait": "an LM's summary of the history as the persona, no alignment",
}
"""Other ways to a persona for the same agent, with the same memory and held-out interactions."""
REFERENCES = ("majority", "nearest")
"""Rows without an LM: always worth having beside the others, never "the best baseline"."""

ABLATIONS = {
    "no-alignment": "the initial persona: counted facts; for as-in-paper an LM's summary and rules for tools",
    "no-persona": "memory and actions, no persona and no alignment",
    "no-memory": "no recalled episodes and no facts; the persona is what alignment writes",
    "no-action": "as in the paper: no tool and no recall; the persona alone answers",
    "no-steering": "the persona does not steer the look-ups: plain recall by the query",
    "no-knowledge": "without the knowledge tool",
    "block": "episodes as a block of text instead of turns",
    "any-label": "any label of the task may be the answer, not only those that the user gives",
}
CONTROL = "own-labels"
"""Of a baseline: the answer is one of the labels that the user gives, as PersonaAgent has it."""
RETRIEVALS = ("bm25", "dense", "hybrid")
_NUMBERS = {"k": 0, "recent": 1, "epochs": 1, "history": 0}  # option -> least value
_OF_ALIGNMENT = ("recent", "epochs")
_ALIGNED = ("persona", "as-in-paper", "textgrad")


def _flags(system: str) -> tuple[str, ...]:
    if system == "persona":
        return tuple(ABLATIONS)
    if system == "as-in-paper":  # whose answers are any label anyway
        return tuple(name for name in ABLATIONS if name != "any-label")
    return (CONTROL,) if system in SYSTEMS else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table, such as ``persona``, ``persona@no-memory`` or ``rag@history=3,k=8,retrieval=dense``.

    ``k`` episodes shown; ``recent`` and ``epochs`` of alignment; ``history``: only so many latest interactions
    (None = all); ``retrieval``: how episodes are found; ``changes``: some of ``ABLATIONS``, or ``own-labels`` for a
    baseline with an LM.
    """

    system: str
    k: int | None = None
    recent: int | None = None
    epochs: int | None = None
    history: int | None = None
    retrieval: str | None = None
    changes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Variant:
        """A variant from its name; ``name`` is the inverse.

        Raises:
            InputError: an unknown system or option, or one that this system does not have.

        Example:
            >>> Variant.parse("rag@history=3,k=8").name
            'rag@history=3,k=8'
        """
        system, _, options = text.strip().partition("@")
        known = (*SYSTEMS, *OPTIMIZED, *REFERENCES)
        if system not in known:
            raise InputError(f"system {system!r}: expected one of {', '.join(known)}")
        settings: dict[str, Any] = {}
        flags = _flags(system)
        numbers = [n for n in _NUMBERS if n not in _OF_ALIGNMENT or system in _ALIGNED]
        for option in filter(None, (o.strip() for o in options.split(","))):
            key, has_value, value = option.partition("=")
            if not has_value and key in flags:
                settings["changes"] = tuple(dict.fromkeys((*settings.get("changes", ()), key)))
            elif has_value and key in numbers and value.isdigit() and int(value) >= _NUMBERS[key]:
                settings[key] = int(value)
            elif key == "retrieval" and value in RETRIEVALS:
                settings[key] = value
            else:
                expected = ", ".join([*flags, *(f"{n}=..." for n in numbers), f"retrieval={'|'.join(RETRIEVALS)}"])
                raise InputError(f"variant {text!r}, option {option!r}: expected {system}@ with some of {expected}")
        return cls(system=system, **settings)

    @property
    def name(self) -> str:
        values = [f"{key}={getattr(self, key)}" for key in sorted(_NUMBERS) if getattr(self, key) is not None]
        options = [*self.changes, *values, *([f"retrieval={self.retrieval}"] if self.retrieval else [])]
        return f"{self.system}@{','.join(options)}" if options else self.system

    @property
    def is_baseline(self) -> bool:
        """One with an LM: PersonaAgent's difference is taken to the best that nothing is changed in (as in LaMP)."""
        return self.system in SYSTEMS and self.system != "persona"

    def without(self, defaults: Mapping[str, Any]) -> Variant:
        """This variant, less the options that say what holds anyway: the default point of a curve is the plain row.

        Example:
            >>> Variant.parse("persona@epochs=3,k=8").without({"epochs": 3, "k": 4}).name
            'persona@k=8'
        """
        mine: dict[str, Any] = {key: getattr(self, key) for key in ("k", "recent", "epochs", "retrieval")}
        if self.system == "as-in-paper":
            defaults = {**defaults, "retrieval": defaults.get("paper_retrieval")}
        same = [key for key, value in mine.items() if value is not None and value == defaults.get(key)]
        return replace(self, **dict.fromkeys(same))  # type: ignore[arg-type]


def variants(
    systems: Sequence[str] = SYSTEMS,
    *,
    references: bool = True,
    ablations: Iterable[str] = (),
    scale: Iterable[str] = (),
    cold: Iterable[int] = (),
    of: str = "persona",
) -> list[Variant]:
    """All rows that are asked for, each once, in the order of the table.

    Args:
        ablations: names in ``ABLATIONS``, of the system ``of``.
        scale: curves such as ``"epochs=1,3,5"`` (``recent``, ``epochs`` or ``k``), of the system ``of``.
        cold: lengths that histories are cut to, for every system.
        of: ``"persona"`` or ``"as-in-paper"``.

    Raises:
        InputError: an unknown name.

    Example:
        >>> [v.name for v in variants(["persona"], references=False, scale=["k=2,4"], cold=[0])]
        ['persona', 'persona@k=2', 'persona@k=4', 'persona@history=0']
    """
    plain = [Variant.parse(name) for name in (*systems, *(REFERENCES if references else ()))]
    rows = [*plain, *(Variant.parse(f"{of}@{name}") for name in ablations)]
    for curve in scale:
        key, _, values = curve.partition("=")
        rows += [Variant.parse(f"{of}@{key}={value.strip()}") for value in values.split(",")]
    rows += [replace(v, history=n) for n in cold for v in plain]
    return list(dict.fromkeys(rows))

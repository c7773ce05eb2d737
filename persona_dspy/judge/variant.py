"""Which systems are compared, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_dspy.errors import InputError

__all__ = ["ABLATIONS", "CONTROL", "REFERENCES", "SYSTEMS", "Variant", "variants"]

SYSTEMS = ("persona", "direct", "icl", "rag", "pag", "react", "membank")
REFERENCES = ("majority", "nearest")
"""Rows without an LM: always worth having beside the others, never "the best baseline"."""

ABLATIONS = {
    "no-alignment": "the initial persona, of counted facts",
    "no-persona": "memory and actions, no persona and no alignment",
    "no-memory": "no recalled episodes and no facts; the persona is what alignment writes",
    "no-action": "the persona does not steer the look-ups: plain recall by the query",
    "no-knowledge": "without the knowledge tool",
    "block": "episodes as a block of text instead of turns",
    "any-label": "any label of the task may be the answer, not only those that the user gives",
}
CONTROL = "own-labels"
"""Of a baseline: the answer is one of the labels that the user gives, as PersonaAgent has it."""
_NUMBERS = {"k": 0, "recent": 1, "epochs": 1, "history": 0}  # option -> least value


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table, such as ``persona``, ``persona@no-memory`` or ``rag@history=3,k=8``.

    ``k`` episodes shown; ``recent`` and ``epochs`` of alignment; ``history``: only so many latest interactions
    (None = all); ``changes``: some of ``ABLATIONS``, or ``own-labels`` for a baseline with an LM.
    """

    system: str
    k: int | None = None
    recent: int | None = None
    epochs: int | None = None
    history: int | None = None
    changes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Variant:
        """A variant from its name; ``name`` is the inverse.

        Raises:
            InputError: an unknown system or option.

        Example:
            >>> Variant.parse("rag@history=3,k=8").name
            'rag@history=3,k=8'
        """
        system, _, options = text.strip().partition("@")
        if system not in SYSTEMS + REFERENCES:
            raise InputError(f"system {system!r}: expected one of {', '.join(SYSTEMS + REFERENCES)}")
        settings: dict[str, Any] = {}
        flags = () if system in REFERENCES else tuple(ABLATIONS) if system == "persona" else (CONTROL,)
        for option in filter(None, (o.strip() for o in options.split(","))):
            key, has_value, value = option.partition("=")
            if not has_value and key in flags:
                settings["changes"] = tuple(dict.fromkeys((*settings.get("changes", ()), key)))
            elif has_value and key in _NUMBERS and value.isdigit() and int(value) >= _NUMBERS[key]:
                settings[key] = int(value)
            else:
                expected = ", ".join([*flags, *(f"{n}=..." for n in _NUMBERS)])
                raise InputError(f"variant {text!r}, option {option!r}: expected {system}@ with some of {expected}")
        return cls(system=system, **settings)

    @property
    def name(self) -> str:
        numbers = [f"{key}={getattr(self, key)}" for key in sorted(_NUMBERS) if getattr(self, key) is not None]
        options = [*self.changes, *numbers]
        return f"{self.system}@{','.join(options)}" if options else self.system

    @property
    def is_baseline(self) -> bool:
        """One with an LM: PersonaAgent's difference is taken to the best that nothing is changed in (as in LaMP)."""
        return self.system != "persona" and self.system not in REFERENCES


def variants(
    systems: Sequence[str] = SYSTEMS,
    *,
    references: bool = True,
    ablations: Iterable[str] = (),
    scale: Iterable[str] = (),
    cold: Iterable[int] = (),
) -> list[Variant]:
    """All rows that are asked for, each once, in the order of the table.

    Args:
        ablations: names in ``ABLATIONS``, of the persona system.
        scale: curves such as ``"epochs=1,3,5"`` (``recent``, ``epochs`` or ``k``), of the persona system.
        cold: lengths that histories are cut to, for every system.

    Raises:
        InputError: an unknown name.

    Example:
        >>> [v.name for v in variants(["persona"], references=False, scale=["k=2,4"], cold=[0])]
        ['persona', 'persona@k=2', 'persona@k=4', 'persona@history=0']
    """
    plain = [Variant.parse(name) for name in (*systems, *(REFERENCES if references else ()))]
    rows = [*plain, *(Variant.parse(f"persona@{name}") for name in ablations)]
    for curve in scale:
        key, _, values = curve.partition("=")
        rows += [Variant.parse(f"persona@{key}={value.strip()}") for value in values.split(",")]
    rows += [replace(v, history=n) for n in cold for v in plain]
    return list(dict.fromkeys(rows))

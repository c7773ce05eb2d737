"""Every error this package raises on purpose.

PersonaError
├── InputError            what the caller gave is wrong          (CLI exit code 2)
│   ├── DataError         a file or a row of it: file, line, field, expected
│   ├── PersonaFormatError  a persona JSON that cannot be read
│   └── ModelFileError    a model file that is missing or no GGUF; a ModelError too
├── RunError              the work itself failed                 (CLI exit code 1)
│   ├── BudgetExceeded    a Budget is spent; the best persona so far is kept
│   ├── ModelError        a model file or an LM that cannot be used
│   ├── StoreError        the store cannot be opened, read or written
│   │   └── ForgettingIncomplete  a place that keeps something of a user failed, the others were emptied
│   ├── UserForgotten     work on a user who was forgotten since it began; nothing of it is written
│   └── VersionConflict   another version became current since this work began; nothing of it is written
└── UnknownUser           no such user in the store or file      (CLI exit code 2)

Each message holds the value (``!r``), what was expected and what to type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BudgetExceeded",
    "DataError",
    "ForgettingIncomplete",
    "InputError",
    "ModelError",
    "ModelFileError",
    "PersonaError",
    "PersonaFormatError",
    "RunError",
    "StoreError",
    "UnknownUser",
    "UserForgotten",
    "VersionConflict",
]


class PersonaError(Exception):
    """Root of every error raised on purpose by persona-dspy.

    Example:
        >>> issubclass(DataError, PersonaError), DataError.exit_code
        (True, 2)
    """

    exit_code = 1


class InputError(PersonaError):
    """The caller's value cannot be used."""

    exit_code = 2


class DataError(InputError):
    """A data file, or one row of it, cannot be used.

    Example:
        >>> str(DataError("x.jsonl", line=3, field="time", value="soon", expected="an ISO date such as 2026-01-31"))
        "x.jsonl, line 3, field 'time': got 'soon', expected an ISO date such as 2026-01-31"
    """

    def __init__(
        self,
        file: str,
        *,
        expected: str,
        line: int | None = None,
        row_id: str | None = None,
        field: str | None = None,
        value: object = None,
        hint: str = "",
    ) -> None:
        self.file, self.line, self.row_id, self.field, self.expected = file, line, row_id, field, expected
        where = file
        where += f", line {line}" if line is not None else ""
        where += f", id {row_id!r}" if row_id is not None else ""
        where += f", field {field!r}" if field is not None else ""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(f"{where}: got {shown}, expected {expected}" + (f". {hint}" if hint else ""))


def to_install(extra: str) -> str:
    """What to type for an extra that is missing.

    Example:
        >>> print(to_install("report"))
        type: pip install 'persona-dspy[report]', or in a checkout: pip install '.[report]'
    """
    return f"type: pip install 'persona-dspy[{extra}]', or in a checkout: pip install '.[{extra}]'"


class PersonaFormatError(InputError):
    """A persona JSON is not one this version can read."""


class RunError(PersonaError):
    """The work failed although its input was fine."""


class BudgetExceeded(RunError):
    """A ``Budget`` is spent. Raised before the call that would go over it."""


class ModelError(RunError):
    """A model file or LM cannot be used."""


class ModelFileError(ModelError, InputError):
    """What was named as a model file is missing, unreadable or not GGUF."""

    exit_code = 2


class StoreError(RunError):
    """The store cannot be opened, read or written."""


class ForgettingIncomplete(StoreError):
    """A place failed while a user was forgotten; all others were emptied.

    Attributes:
        erasures: what was removed, place by place; a place that failed says so in its note.
    """

    def __init__(self, message: str, erasures: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.erasures = list(erasures)


class UserForgotten(RunError):
    """The user was forgotten after the state that this write rests on was read: nothing was written."""


class VersionConflict(RunError):
    """Another version became current after the one that this write rests on was read: nothing was written."""


class UnknownUser(PersonaError):
    """No such user."""

    exit_code = 2

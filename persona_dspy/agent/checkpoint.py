"""DSPy's checkpoints of programs with a persona: loaded whole, or refused and nothing changes, whoever wrote them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import dspy

from persona_dspy.errors import InputError, PersonaError

__all__ = ["LoadsCheckpoints"]

_EXPECTED = "expected what program.save(...) of such a program wrote"


class LoadsCheckpoints:
    """``load`` and ``load_state`` of programs whose parameters are a persona and DSPy's predictors."""

    def load(
        self, path: str | os.PathLike[str], allow_pickle: bool = False, allow_unsafe_lm_state: bool = False
    ) -> None:
        """DSPy's; nothing changes where it raises.

        Raises:
            InputError: the file is another user's, or no checkpoint of such a program.
            OSError: it cannot be read.
        """
        try:
            super().load(path, allow_pickle, allow_unsafe_lm_state)  # type: ignore[misc]
        except (PersonaError, OSError):
            raise
        except Exception as failure:  # noqa: BLE001 - DSPy reads a file as if it could only be its own
            raise InputError(f"{os.fspath(path)!r}: {type(failure).__name__}: {failure}; {_EXPECTED}") from None

    def load_state(self, state: Any, **options: Any) -> None:
        """DSPy's; nothing changes where it raises.

        Raises:
            InputError: the state is another user's, or no state of such a program.
        """
        parameters: list[tuple[str, Any]] = list(self.named_parameters())  # type: ignore[attr-defined]
        if not isinstance(state, Mapping):
            raise InputError(f"saved state {state!r:.80}: {_EXPECTED}")
        missing = [name for name, _ in parameters if name not in state]
        if missing:
            raise InputError(
                f"saved state with {sorted(set(state) - {'metadata'})!r}: expected {missing!r} too, as "
                f"{type(self).__name__}.save writes it; load a plain program's file into that: plain.load(path), then "
                "personalize(plain, persona=...); a persona JSON is read by load_persona(path)"
            )
        before = [(parameter, dict(vars(parameter))) for _, parameter in parameters]
        try:
            for name, parameter in parameters:
                _check_names(name, parameter, state[name])
            super().load_state(state, **options)  # type: ignore[misc]
            for name, parameter in parameters:
                _check_loaded(name, parameter)
        except Exception as failure:
            for parameter, values in before:
                vars(parameter).clear()
                vars(parameter).update(values)
            if isinstance(failure, PersonaError):
                raise
            raise InputError(f"saved state: {type(failure).__name__}: {failure}; {_EXPECTED}") from None


def _check_names(name: str, parameter: Any, state: Any) -> None:
    """DSPy sets whatever else stands in a predictor's state as an attribute: ``forward``, or an address in ``config``
    to which every later prompt would go."""
    if isinstance(parameter, dspy.Predict):
        unknown = sorted(set(state) - {*parameter.dump_state(), "fields", "extended_signature"})
        if unknown:
            raise InputError(f"saved state of {name!r} with {unknown!r}: {_EXPECTED}")


def _check_loaded(name: str, parameter: Any) -> None:
    parameter.dump_state()
    if isinstance(parameter, dspy.Predict):
        demos, signature = cast(Any, parameter.demos), cast(Any, parameter.signature)
        if not isinstance(demos, list) or not all(hasattr(demo, "items") for demo in demos):
            raise InputError(f"saved state of {name!r}: demos {demos!r:.80}; expected a list of objects")
        if not isinstance(signature.instructions, str):
            raise InputError(f"saved state of {name!r}: instructions are no text; {_EXPECTED}")

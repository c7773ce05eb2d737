"""A persona as a DSPy parameter: listed, copied, saved, loaded and reset with the program."""

from __future__ import annotations

from typing import Any

from dspy.predict.parameter import Parameter
from pydantic import ValidationError

from persona_dspy.core.html import persona_html
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError

__all__ = ["PersonaParameter"]


class PersonaParameter(Parameter):
    """A persona as something that DSPy lists, copies, saves, loads and resets, as it does a predictor's demos.

    ``value`` is the current persona, ``initial`` what ``reset()`` goes back to.
    """

    def __init__(self, value: Persona, initial: Persona | None = None) -> None:
        self._value = value
        self.initial = initial or value

    @property
    def value(self) -> Persona:
        return self._value

    @value.setter
    def value(self, persona: Persona) -> None:
        if persona.user_id != self._value.user_id:
            raise InputError(_other_user(persona, self._value.user_id))
        self._value = persona

    def reset(self) -> None:
        """Back to the initial persona."""
        self.value = self.initial

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """JSON-safe state for ``program.save``."""
        return {"value": self.value.model_dump(mode="json"), "initial": self.initial.model_dump(mode="json")}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``dump_state``; nothing changes where it raises.

        Raises:
            InputError: the state is no persona, or another user's.
        """
        try:
            value, initial = Persona.model_validate(state["value"]), Persona.model_validate(state["initial"])
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError(f"saved persona: {error}; expected what program.save(...) of a program wrote") from None
        for persona in (value, initial):
            if persona.user_id != self._value.user_id:
                raise InputError(_other_user(persona, self._value.user_id))
        self._value, self.initial = value, initial

    def _repr_html_(self) -> str:
        return persona_html(self.value)

    def __repr__(self) -> str:
        return f"PersonaParameter(user_id={self.value.user_id!r}, version={self.value.version})"


def _other_user(persona: Persona, user_id: str) -> str:
    return (
        f"persona of user {persona.user_id!r}: expected user {user_id!r}; one program answers for one user, make this "
        f"one for the other: program.for_user({persona.user_id!r})"
    )

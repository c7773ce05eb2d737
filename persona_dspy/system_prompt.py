"""How a persona, and past turns, reach the messages of every predictor. Owns: the adapter mixin, the context.

Not here: what a persona says (persona.py), which turns are recalled (memory). Everything travels by ``dspy.context``:
programs are shared and never changed, so users on other threads or tasks cannot see it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from persona_dspy.ledger import current_ledger
from persona_dspy.untrusted import data_text

__all__ = ["Turn", "as_persona", "personal_adapter"]

Turn = Mapping[str, str]  # field name -> value, one past query and the user's own response


class _PersonaMixin:
    """Over any DSPy adapter: persona last in the system message, past turns before the current query.

    Order of a request: structure and task (the same for all users: prompt caches hit across them), persona (the same
    for one user's queries), the program's own demos, the user's past turns with the nearest last, the query.
    """

    def format_system_message(self, signature: Any) -> str:
        system = super().format_system_message(signature)  # type: ignore[misc]
        persona = dspy.settings.get("persona_prompt") or ""
        return f"{system}\n\n{persona}" if persona else system

    def format_demos(self, signature: Any, demos: list[Any]) -> list[dict[str, Any]]:
        messages = super().format_demos(signature, demos)  # type: ignore[misc]
        for turn in dspy.settings.get("persona_turns") or ():
            messages.extend(self._turn(signature, turn))
        return messages

    def _turn(self, signature: Any, turn: Turn) -> list[dict[str, Any]]:
        inputs = [name for name in signature.input_fields if name in turn]
        outputs = [name for name in signature.output_fields if name in turn]
        if not inputs or not outputs:
            return []  # a predictor about something else, such as query rewriting, gets no answers as examples
        for name in [*signature.input_fields, *signature.output_fields]:
            if name not in turn:
                signature = signature.delete(name)
        values = {name: data_text(value) for name, value in turn.items()}
        return [
            {"role": "user", "content": self.format_user_message_content(signature, values)},  # type: ignore[attr-defined]
            {"role": "assistant", "content": self.format_assistant_message_content(signature, values)},  # type: ignore[attr-defined]
        ]

    def _make_json_adapter_fallback(self) -> Adapter:
        return personal_adapter(super()._make_json_adapter_fallback())  # type: ignore[misc]

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        with _paid():
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        with _paid():
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]


@contextmanager
def _paid() -> Generator[None]:
    ledger = current_ledger()
    if ledger is None:
        yield
        return
    ledger.check()
    try:
        yield
    finally:
        ledger.settle()


@cache
def _personal_class(base: type[Adapter]) -> type[Adapter]:
    return type(f"Persona{base.__name__}", (_PersonaMixin, base), {})


def personal_adapter(base: Adapter | None = None, lm: Any = None) -> Adapter:
    """``base`` (or the adapter that suits ``lm``) as one that carries the persona; ``base`` itself is not changed.

    Without ``base``: DSPy's configured adapter; else JSONAdapter where the LM keeps to a schema (typed answers then
    always parse, also with a 135M model), else ChatAdapter.
    """
    base = base or dspy.settings.get("adapter")
    if isinstance(base, _PersonaMixin):
        return base  # type: ignore[return-value]
    if base is None:
        lm = lm or dspy.settings.get("lm")
        base = dspy.JSONAdapter() if getattr(lm, "supports_response_schema", False) else dspy.ChatAdapter()
    adapter = object.__new__(_personal_class(type(base)))
    adapter.__dict__.update(base.__dict__)
    return adapter


@contextmanager
def as_persona(
    prompt: str, *, turns: Sequence[Turn] = (), adapter: Adapter | None = None, lm: Any = None
) -> Generator[None]:
    """Every DSPy predictor called inside sees ``prompt`` in its system message and ``turns`` as past turns.

    ``prompt`` is kept to the letter; an empty one adds nothing. ``turns``: nearest last.
    """
    with dspy.context(persona_prompt=prompt, persona_turns=tuple(turns), adapter=personal_adapter(adapter, lm)):
        yield

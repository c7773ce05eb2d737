"""The private names of DSPy that this room needs; tests/test_dspy_private.py says what breaks without each."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.adapters.base import Adapter

__all__ = ["AdapterHooks", "adapter_class", "answers_on_a_loop", "with_parts_listed"]


class AdapterHooks:
    """Mixin over a DSPy adapter: two moments of a call that DSPy has no public hook for."""

    def after_reply(self) -> None:
        """Called when the LM has answered, before the answer is parsed."""

    def instead_of(self, fallback: Adapter) -> Adapter:
        """The adapter to try where an answer cannot be parsed, in place of ``fallback``, the JSON adapter."""
        return fallback

    def _call_postprocess(self, *args: Any, **options: Any) -> Any:
        self.after_reply()
        return super()._call_postprocess(*args, **options)  # type: ignore[misc]

    def _make_json_adapter_fallback(self) -> Adapter:
        return self.instead_of(super()._make_json_adapter_fallback())  # type: ignore[misc]


def adapter_class(base: type[Adapter], hooks: type[AdapterHooks]) -> type[Adapter]:
    """A subclass of an adapter under its own name, by which DSPy's stream listeners know it. Callbacks hear of each
    of its calls once, though DSPy wraps ``format`` and ``parse`` again in each subclass."""
    subclass = type(base.__name__, (hooks, base), {"__qualname__": f"Persona{base.__name__}"})
    for name in ("format", "parse"):
        delattr(subclass, name)
    return subclass


def answers_on_a_loop(lm: Any) -> bool:
    """Whether ``lm.acall`` answers: DSPy's own engines do, an engine of one's own where it came with an async one, and
    an LM class of one's own where it has ``aforward``."""
    if not isinstance(lm, dspy.LM):
        return type(lm).aforward is not dspy.BaseLM.aforward
    return isinstance(lm.engine, str) or vars(lm)["_async_engine_spec"] is not None


def with_parts_listed(program: dspy.Module) -> dspy.Module:
    """``program``, or a copy of one that another optimizer compiled: DSPy leaves compiled submodules out of
    ``named_parameters()``, and so out of saved files; ours must be in."""
    if not any(getattr(part, "_compiled", False) for _, part in program.named_sub_modules()):
        return program
    copied = program.deepcopy()
    for _, part in copied.named_sub_modules():
        vars(part)["_compiled"] = False
    return copied

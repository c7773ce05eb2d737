"""Programs on their way to another process or a file: without the user's memory, keys of LMs and locks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import cloudpickle
import dspy

from persona_dspy.agent.drafts import RecentDrafts
from persona_dspy.memory import EpisodicMemory

__all__ = ["keys_pickled", "pickled"]

_WITH_KEYS: ContextVar[bool] = ContextVar("persona_dspy_pickle_keys", default=False)

_NOT_PICKLED = ("memory", "online", "callbacks", "history", "_drafts")
_SECRETS = ("key", "token", "secret", "password", "credential", "header", "auth")  # in names of an LM's options


@contextmanager
def keys_pickled() -> Generator[None]:
    """Programs pickled inside keep the keys of their LMs: for a process and its own."""
    token = _WITH_KEYS.set(True)
    try:
        yield
    finally:
        _WITH_KEYS.reset(token)


def pickled(program: Any) -> tuple[Any, ...]:
    """What ``__reduce__`` of a personal program returns; signatures made from text need cloudpickle."""
    copied = program.deepcopy()
    for part in [copied, *(module for _, module in copied.named_sub_modules())]:
        vars(part)["history"] = []  # prompts of whoever used the program
        vars(part).update({n: _without_keys(value) for n, value in vars(part).items() if _has_keys(value)})
    state = {name: value for name, value in vars(copied).items() if name not in _NOT_PICKLED}
    return _unpickled, (type(program), cloudpickle.dumps(state), len(program.memory or ()))


def _unpickled(kind: type[Any], state: bytes, remembered: int) -> Any:
    program = object.__new__(kind)
    vars(program).update(cloudpickle.loads(state), callbacks=[], history=[])
    program.memory, program._drafts = EpisodicMemory(user_id=program.user_id), RecentDrafts()
    if remembered:
        warnings.warn(
            f"the {remembered} interactions of user {program.user_id!r} stayed where the program was pickled; it "
            "answers under the persona alone, until they are given back: "
            "program.for_user(user_id, history, program.persona.value)",
            stacklevel=2,
        )
    return program


def _has_keys(value: Any) -> bool:
    return isinstance(value, dspy.BaseLM) or (
        isinstance(value, dspy.Adapter) and any(isinstance(inner, dspy.BaseLM) for inner in vars(value).values())
    )


def _without_keys(value: Any) -> Any:
    """An LM without keys and history, or an adapter whose own LM (``TwoStepAdapter``) is without; a copy."""
    copied = copy.copy(value)
    if isinstance(value, dspy.BaseLM):
        kept = {n: v for n, v in value.kwargs.items() if _WITH_KEYS.get() or not _is_secret(n)}
        vars(copied).update(kwargs=kept, history=[])
    else:
        vars(copied).update({n: _without_keys(v) for n, v in vars(value).items() if isinstance(v, dspy.BaseLM)})
    return copied


def _is_secret(option: str) -> bool:
    return "tokens" not in option and any(word in option.lower() for word in _SECRETS)

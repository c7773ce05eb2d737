"""A process's memory does not grow with the users it has seen: every cache has a bound, and nothing else stays."""

import functools
import gc
import importlib
import typing

import dspy
import pytest
from pydantic import BaseModel
from test_architecture import NAMES

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Interaction
from persona_dspy.data.files import UserHistory
from persona_dspy.data.lamp import infer_task
from persona_dspy.fleet.compile import compile_users
from persona_dspy.lm import terse
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower

# Caches without a bound, since their keys are none of a user's. This list only shrinks.
UNBOUND = {
    "persona_dspy.agent.actions._plan_signature",  # tools of a program
    "persona_dspy.agent.prompt._personal_class",  # classes of adapters
    "persona_dspy.core.metrics._scorer",  # names of metrics
    "persona_dspy.lm.kept_answers._recorded_class",  # classes of LMs
    "persona_dspy.memory.named._own_encoder",  # names of encoders
}


def caches():
    """Every ``lru_cache`` of the two packages, by its full name."""
    found = {}
    for name in NAMES:
        module = importlib.import_module(name)
        holders = [module, *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)]
        for value in (v for holder in holders for v in vars(holder).values() if hasattr(v, "cache_parameters")):
            found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def test_every_cache_has_a_bound():
    assert {name for name, cache in caches().items() if cache.cache_parameters()["maxsize"] is None} <= UNBOUND
    assert len(caches()) > 10


def test_formats_and_messages_of_signatures_are_bounded(monkeypatch):
    monkeypatch.setattr(terse, "_MAX_SIGNATURES", 5)
    for n in range(20):
        terse.TerseJSON().format_system_message(dspy.Signature(f"query -> answer{n}"))
        assert len(terse._SYSTEM) <= 5


def agent_of(history):
    task = infer_task(history.interactions)
    return PersonaAgent(task.signature(), history=history.interactions, user_id=history.user_id)


def users(first, count):
    for n in range(first, first + count):
        past = [
            Interaction(user_id=f"u{n}", query=f"film {n} {k}", response=f"tag{n}-{k % 3}", time=f"2026-01-{k + 1:02d}")
            for k in range(9)
        ]
        yield UserHistory(user_id=f"u{n}", interactions=tuple(past))


def kept():
    """What is still there once every bounded cache is emptied, those of libraries too: (classes with fields, such as
    signatures; objects of ours)."""
    for cache in (o for o in gc.get_objects() if isinstance(o, functools._lru_cache_wrapper)):
        if cache.cache_parameters()["maxsize"] is not None:
            cache.cache_clear()
    for clear in typing._cleanups:
        clear()
    terse._FORMATS.clear()
    terse._SYSTEM.clear()
    for _ in range(3):
        gc.collect()
    objects = gc.get_objects()
    classes = [o for o in objects if isinstance(o, type) and issubclass(o, BaseModel)]
    ours = [o for o in objects if str(type(o).__module__).startswith(("persona_dspy.", "optimizers."))]
    return len(classes), len(ours)


@pytest.mark.slow
def test_nothing_is_kept_of_users_with_labels_of_their_own():
    def compile_them(first, count):
        with dspy.context(lm=FakeLM(RuleFollower())):
            results = compile_users(agent_of, users(first, count), PersonaAlignment(epochs=1), workers=4)
            assert all(r.document for r in results)

    compile_them(0, 6)
    before = kept()
    compile_them(100, 20)
    after = kept()
    assert after[0] <= before[0] + 2, "signature classes stay"
    assert after[1] <= before[1] + 20, "objects of users stay"

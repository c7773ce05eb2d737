"""What every path sends to an LM, byte for byte as it was recorded: a refactoring must not change one request.

Where a request is meant to change, ``python tests/test_same_requests.py --write`` records it anew; the diff of the
failing test says what changed.
"""

import asyncio
import difflib
import gzip
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import ContextLengthError
from dspy.utils.exceptions import AdapterParseError

from optimizers import KFoldGate, PersonaAlignment
from persona_dspy import Interaction, OnlineAlignment, Persona, PersonaAgent, compile_users, personalize
from persona_dspy.data import UserHistory
from persona_dspy.judge import ABLATIONS, SYSTEMS, Results, Setting, cases, evaluate, variants
from persona_dspy.testing import KINDS, FakeEngine, RuleFollower, SyntheticUser

GOLDEN = Path(__file__).with_name("requests.json.gz")
PERSONA = Persona.from_text("Prefers short answers.\nCalls space films sci-fi.", user_id="ana")
PAST = [
    Interaction(user_id="ana", query=f"film {n} about {about}", response=tag, time=f"2026-01-{n:02d}", id=f"p{n}")
    for n, (about, tag) in enumerate([("space", "sci-fi"), ("war", "drama"), ("space war", "sci-fi")] * 3, 1)
]


class Recorded(FakeEngine):
    """Keeps requests in a plain form; above ``limit`` characters it says that the context is full."""

    def __init__(self, *handlers, limit=None):
        super().__init__(handlers)
        self.requests, self.limit = [], limit

    def complete(self, request):
        self.requests.append(json.dumps(asdict(request), default=str, sort_keys=True, ensure_ascii=False, indent=1))
        if self.limit is not None and len(self.requests[-1]) > self.limit:
            raise ContextLengthError("the prompt is too long")
        return super().complete(request)

    async def acomplete(self, request):
        return self.complete(request)


class _Async:
    def __init__(self, engine):
        self.complete = engine.acomplete

    def __deepcopy__(self, memo):
        return self


def lm_of(*handlers, limit=None):
    engine = Recorded(*handlers, limit=limit)
    return dspy.LM("fake/lm", engine=engine, async_engine=_Async(engine), cache=False, num_retries=0)


def think(prompt):
    """Steps of agents: look something up once, then answer."""
    if "action" in prompt.outputs:
        done = "recall" in prompt.user and "Observation" in prompt.user
        return {name: {"thought": "t", "action": "recall_history", "words": "space"}.get(name, "x")
                for name in prompt.outputs} | ({"action": "answer"} if done else {})  # fmt: skip
    if "next_tool_name" in prompt.outputs:
        return {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}}
    return None


def anything(prompt):
    """The first of the choices, or a word."""
    return {name: (prompt.choices(name) or ("short",))[0] for name in prompt.outputs}


def alignment():
    """Fleets of every kind of user, one worker: default gate, folds, as in the paper."""
    lm = lm_of(think, RuleFollower(), anything)
    optimizers = [PersonaAlignment(), PersonaAlignment(gate=KFoldGate()), PersonaAlignment.as_in_paper()]
    with dspy.context(lm=lm):
        for kind in KINDS:
            person = SyntheticUser(seed=1, kind=kind, user_id=kind)
            history = UserHistory(user_id=kind, interactions=tuple(person.interactions(16)))
            for optimizer in optimizers:
                list(compile_users(PersonaAgent(person.signature), [history], optimizer, workers=1))
    return lm


def judge():
    """All systems and ablations on two users."""
    lm = lm_of(think, RuleFollower(heeds_turns=True), anything)
    users = [
        UserHistory(user_id=f"s{n}", interactions=tuple(SyntheticUser(seed=n, user_id=f"s{n}").interactions(16)))
        for n in (1, 2)
    ]
    setting = Setting(align=lambda recent=None, epochs=None: PersonaAlignment(recent=recent or 3, epochs=epochs or 1))
    with tempfile.TemporaryDirectory() as folder, dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        chosen = variants(SYSTEMS, ablations=ABLATIONS)
        evaluate(cases(users), chosen, setting, Results(Path(folder), {"test": 1}, {}), workers=1)
    return lm


class Two(dspy.Module):
    """A program of two predictors."""

    def __init__(self):
        super().__init__()
        self.outline, self.answer = (
            dspy.Predict("question -> outline"),
            dspy.ChainOfThought("question, outline -> answer"),
        )

    def forward(self, question):
        return self.answer(question=question, outline=self.outline(question=question).outline)

    async def aforward(self, question):
        return await self.answer.acall(question=question, outline=(await self.outline.acall(question=question)).outline)


def personal():
    """Other people's programs under a persona, every adapter, sync and async."""
    lm = lm_of(think, anything)
    programs = [dspy.Predict("question -> answer"), dspy.ChainOfThought("question -> answer: int"), Two()]
    for adapter in (None, dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()):
        for program in programs:
            with dspy.context(lm=lm, adapter=adapter):
                for options in ({}, {"history": PAST}):
                    mine = personalize(program, persona=PERSONA, **options)
                    for ask in (mine, lambda mine=mine, **given: asyncio.run(mine.acall(**given))):
                        try:
                            ask(question="A film about space <|im_start|>?")
                        except AdapterParseError as failure:  # "short" is no int: what was sent is what counts
                            assert "short" in str(failure)
    return lm


def agent():
    """Every policy and form of episodes, sync and async, a full context among them."""
    parts = []
    for limit in (None, 6000):
        for policy in ("fixed", "plan", "react", "none", "plain"):
            for form in ("turns", "block"):
                for signature in ("film -> tag", "film, place -> tag: typing.Literal['sci-fi', 'drama', 'war'], why"):
                    lm = lm_of(think, anything, limit=limit)
                    program = PersonaAgent(signature, history=PAST, persona=PERSONA, actions=policy, episodes_as=form)
                    given = {"film": "space again", **({"place": "x"} if "place" in signature else {})}
                    with dspy.context(lm=lm):
                        for ask in (program, lambda program=program, **given: asyncio.run(program.acall(**given))):
                            try:
                                ask(**given)
                            except ContextLengthError:
                                lm.engine.requests.append("too long")
                    parts += lm.engine.requests
    lm.engine.requests = parts
    return lm


def online():
    """A program that is watched: two responses observed, aligned after each second one."""
    lm = lm_of(think, RuleFollower(), anything)
    person = SyntheticUser(seed=2, user_id="s2")
    past = person.interactions(14)
    with dspy.context(lm=lm):
        program = PersonaAgent(person.signature, history=past[:10], user_id="s2")
        watching = OnlineAlignment(PersonaAlignment(recent=3, epochs=1), every=2)
        program = watching.watch(program)
        for interaction in past[10:]:
            program.observe(interaction.query, interaction.response, time=interaction.time, id=interaction.id)
            assert watching.wait(30)
        program(**{program.query_field: "a rocket leaves"})
        watching.close()
    return lm


SCENARIOS = {s.__name__: s for s in (alignment, judge, personal, agent, online)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_requests_are_sent(name):
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))[name]
    requests = SCENARIOS[name]().engine.requests
    for number, (before, now) in enumerate(zip(golden, requests, strict=False)):
        if before != now:
            pytest.fail(
                f"request {number}:\n" + "\n".join(difflib.unified_diff(before.split("\n"), now.split("\n"), n=1))
            )
    assert len(requests) == len(golden)


if __name__ == "__main__" and "--write" in sys.argv:
    recorded = {name: scenario().engine.requests for name, scenario in SCENARIOS.items()}
    GOLDEN.write_bytes(gzip.compress(json.dumps(recorded, ensure_ascii=False).encode(), mtime=0))
    print({name: len(requests) for name, requests in recorded.items()}, GOLDEN.stat().st_size)

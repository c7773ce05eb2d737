"""A trainset in any form and any order is the user's own past, in the user's own time."""

import random
from typing import Literal

import dspy
import pytest
from dspy.lm15 import ContextLengthError

from optimizers import PersonaAlignment
from optimizers.trainset import remembered
from persona_dspy import Interaction, Persona, PersonaAgent
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

PAIRS = [(f"film number {n:02d}", ["comedy", "drama"][n % 2]) for n in range(16)]


class Tag(dspy.Signature):
    item: str = dspy.InputField()
    tag: Literal["comedy", "drama"] = dspy.OutputField()


def past(pairs=PAIRS, dated=True):
    times = [f"2026-01-{n:02d}" if dated else None for n in range(1, len(pairs) + 1)]
    return [Interaction(user_id="u1", query=q, response=r, time=t) for (q, r), t in zip(pairs, times, strict=True)]


def right(prompt):
    said = next((r for q, r in PAIRS if q in prompt.user), "comedy")
    return {"tag": said} if "tag" in str(prompt.outputs) + str(prompt.schema) else None


def same_order(agent, items):
    return [e.item for e in remembered(agent, items)]


@pytest.mark.parametrize("dated", [True, False])
def test_any_order_becomes_the_users_own(dated):
    agent = PersonaAgent(Tag, history=past(dated=dated))
    shuffled = agent.examples()
    random.Random(3).shuffle(shuffled)
    assert same_order(agent, shuffled) == [q for q, _ in PAIRS]


def test_a_shuffled_trainset_gives_the_same_persona_for_a_user_who_drifts():
    user = SyntheticUser(kind="drift", seed=2)
    records = []
    for shuffle in (False, True):
        agent = PersonaAgent(user.signature, history=user.interactions(32))
        trainset = agent.examples()
        if shuffle:
            random.Random(5).shuffle(trainset)
        with dspy.context(lm=rule_following_lm()):
            records.append(PersonaAlignment().compile(agent, trainset=trainset).alignment.scores)
    assert records[0] == records[1]


def forms():
    interactions = past()
    return {
        "examples": PersonaAgent(Tag, history=interactions).examples(),
        "interactions": interactions,
        "dictionaries": [{"item": q, "tag": r} for q, r in PAIRS],
        "dated dictionaries, newest first": [
            {"item": i.query, "tag": i.response, "time": i.time} for i in reversed(interactions)
        ],
        "a generator": (i for i in interactions),
    }


@pytest.mark.parametrize("form", list(forms()))
@pytest.mark.parametrize("known", [True, False])
def test_a_trainset_is_taken_in_any_form(form, known):
    agent = PersonaAgent(Tag, history=past() if known else (), user_id="u1")
    with dspy.context(lm=FakeLM(right)):
        aligned = PersonaAlignment(epochs=1).compile(agent, trainset=forms()[form])
    assert [i.query for i in aligned.memory.interactions] == [q for q, _ in PAIRS]
    assert len({i.id for i in aligned.memory.interactions}) == 16
    assert aligned.alignment.scores.final == 1


@pytest.mark.parametrize("valset", [None, []])
def test_no_valset_is_an_empty_one(valset):
    agent = PersonaAgent(Tag, history=past())
    with dspy.context(lm=FakeLM(right)):
        aligned = PersonaAlignment(epochs=1).compile(agent, trainset=agent.examples(), valset=valset)
    assert "nothing left to gain" in aligned.alignment.stopped


def test_no_history_at_all_keeps_the_initial_persona_and_costs_nothing():
    for persona in (None, Persona.from_text("Likes tea.", user_id="u1")):
        agent, lm = PersonaAgent(Tag, user_id="u1", persona=persona), FakeLM(right)
        with dspy.context(lm=lm):
            aligned = PersonaAlignment().compile(agent, trainset=[])
        assert aligned.persona.value == agent.persona.value
        assert "too few" in aligned.alignment.stopped and not lm.engine.calls


def test_equal_interactions_are_each_kept():
    twice = [Interaction(user_id="u1", query="ok?", response="comedy") for _ in range(3)]
    agent = PersonaAgent(Tag, history=twice)
    assert len({i.id for i in agent.memory.interactions}) == 3
    bare = PersonaAgent(Tag, user_id="u1")
    assert len(remembered(bare, [{"item": "ok?", "tag": "comedy"}] * 3)) == len(bare.memory) == 3
    with pytest.raises(InputError, match="already in the memory"):
        PersonaAgent(Tag, history=[Interaction(user_id="u1", query=q, response="drama", id="a") for q in "xy"])


def test_a_history_of_dictionaries_is_taken():
    rows = [{"query": q, "response": r, "time": "2026-01-01"} for q, r in PAIRS]
    assert len(PersonaAgent(Tag, history=rows, user_id="u1").memory) == 16
    assert PersonaAgent(Tag, history=[{**row, "user_id": "u1"} for row in rows]).user_id == "u1"


@pytest.mark.parametrize(
    "history", ["text", [3], [{"query": "x"}], [{"query": "x", "response": "comedy", "mood": 1}], {"query": "x"}]
)
def test_what_is_no_history_is_named(history):
    with pytest.raises(InputError, match="history"):
        PersonaAgent(Tag, history=history, user_id="u1")


@pytest.mark.parametrize(
    ("item", "named"),
    [(3, "trainset item 3"), ({"item": "x"}, "'tag'"), ({"item": "x", "tag": "western"}, "'western'"),
     (Interaction(user_id="bob", query="x", response="drama"), "'bob'")],
)  # fmt: skip
def test_an_item_that_cannot_be_used_is_named_before_anything_is_paid(item, named):
    agent, lm = PersonaAgent(Tag, history=past()), FakeLM(right)
    with dspy.context(lm=lm), pytest.raises(InputError, match=named):
        PersonaAlignment().compile(agent, trainset=[*agent.examples(), item])
    assert not lm.engine.calls


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (None, "without return"),
        ((1.0, "good"), "dspy.Prediction"),
        ({"accuracy": 1.0}, "no 'score'"),
        (dspy.Prediction(score=None), "None"),
        (dspy.Prediction(other=1.0), "no 'score'"),
        (100.0, r"100\.0"),
        (-0.1, r"-0\.1"),
        (float("nan"), "nan"),
        ("good", "'good'"),
        ([1.0], "dspy.Prediction"),
        (object(), "object"),
    ],
)
def test_slips_of_a_metric_name_metric_and_example(result, named):
    def mine(example, prediction, trace=None):
        return result

    agent = PersonaAgent(Tag, history=past())
    with dspy.context(lm=FakeLM(right)), pytest.raises(InputError, match=named) as error:
        PersonaAlignment(metric=mine).compile(agent, trainset=agent.examples())
    assert "metric 'mine' gave" in str(error.value) and "on example '" in str(error.value)


def test_an_async_metric_is_named_and_never_left_unawaited():
    async def later(example, prediction, trace=None):
        return 1.0

    agent = PersonaAgent(Tag, history=past())
    with dspy.context(lm=FakeLM(right)), pytest.raises(InputError, match=r"metric 'later'.*await"):
        PersonaAlignment(metric=later).compile(agent, trainset=agent.examples())


@pytest.mark.parametrize("place", [0, 9, 15])
def test_one_interaction_over_the_context_is_left_out_and_named(place):
    pairs = [*PAIRS]
    pairs[place] = (f"{pairs[place][0]} " + "a very long plot " * 5000, pairs[place][1])
    sent = []

    def limited(prompt):
        if len(prompt.system + prompt.user) > 16_000:
            raise ContextLengthError("too long")
        sent.append(prompt)
        return right(prompt)

    agent = PersonaAgent(Tag, history=past(pairs))
    with dspy.context(lm=FakeLM(limited)):
        aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
    (note,) = aligned.alignment.notes
    assert agent.memory.interactions[place].id in note and "left out" in note
    assert aligned.alignment.scores.final == 1 and len(aligned.memory) == 16 and sent

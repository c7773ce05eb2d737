"""GEPA over the persona, with the package itself."""

import dspy
import gepa
import pytest

from optimizers.gepa_adapter import PersonaGEPAAdapter
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core import fenced
from persona_dspy.core.persona import Bullet, Persona
from persona_dspy.errors import BudgetExceeded
from persona_dspy.lm import Budget, Ledger
from persona_dspy.testing.fake_lm import Prompt
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm


def agent_of(user, n=30, **options):
    return PersonaAgent(user.signature, history=user.interactions(n), **options)


def test_gepa_evolves_the_persona_by_our_judge():
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    agent = agent_of(user)
    examples = agent.examples()
    held = [e.interaction_id for e in examples[-6:]]
    adapter = PersonaGEPAAdapter(agent, held=held)
    with dspy.context(lm=lm):
        result = gepa.optimize(
            seed_candidate=adapter.seed,
            trainset=examples[:-6],
            valset=examples[-6:],
            adapter=adapter,
            reflection_lm=lambda prompt: lm.engine.handlers[0](Prompt(system="", user=prompt)),
            max_metric_calls=60,
            seed=1,
            logger=type("Quiet", (), {"log": lambda self, message: None})(),
        )
        made = adapter.program_of(result.best_candidate)
    assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0]
    assert made.persona.value.version == 1
    assert agent.persona.value.version == 0
    turns = [t for p in lm.engine.calls for t in p.turns]
    queries = [i.query for i in agent.memory.interactions[-6:]]
    assert turns
    assert not any(q in t[0] for t in turns for q in queries), "the valset is not recalled"


def test_locked_bullets_survive_any_candidate():
    locked = Bullet(section="style", text="Never shouts.", locked=True)
    agent = agent_of(SyntheticUser(), persona=Persona(user_id="synthetic-0", bullets=(locked,)))
    assert "Never shouts." in PersonaGEPAAdapter(agent).persona({"persona": "Shouts."}).render()


def test_an_empty_candidate_scores_nothing_and_raises_nothing():
    agent = agent_of(SyntheticUser())
    found = PersonaGEPAAdapter(agent).evaluate(agent.examples()[:2], {"persona": "  "}, capture_traces=True)
    assert found.scores == [0.0, 0.0]
    assert len(found.trajectories) == len(found.outputs) == 2


def test_reflection_reads_what_the_user_said_instead():
    user = SyntheticUser(seed=1, odd_topics=6)
    agent = agent_of(user)
    adapter = PersonaGEPAAdapter(agent)
    with dspy.context(lm=rule_following_lm()):
        batch = adapter.evaluate(agent.examples()[:1], adapter.seed, capture_traces=True)
    (record,) = adapter.make_reflective_dataset(adapter.seed, batch, ["persona"])["persona"]
    assert fenced(agent.memory.interactions[0].response, "the user's own response") in record["Feedback"]
    assert record["Inputs"]["query"] == fenced(agent.memory.interactions[0].query, "query")


def test_a_candidate_over_the_cap_scores_nothing_and_says_why():
    agent = agent_of(SyntheticUser(), 8)
    adapter = PersonaGEPAAdapter(agent)
    long = {"persona": "\n".join(f"- Line {n} says something of this user at some length." for n in range(400))}
    batch = adapter.evaluate(agent.examples()[:2], long, capture_traces=True)
    assert batch.scores == [0.0, 0.0]
    assert "expected at most 800" in adapter.make_reflective_dataset(long, batch, ["persona"])["persona"][0]["Feedback"]


def test_an_example_that_raises_scores_nothing_and_ends_nothing():
    user = SyntheticUser(seed=2)
    agent = agent_of(user)
    batch = agent.examples()[-3:]

    def metric(example, prediction, trace=None):
        if example.interaction_id == batch[1].interaction_id:
            raise ValueError("no such key")
        return 0.5

    adapter = PersonaGEPAAdapter(agent, metric)
    with dspy.context(lm=rule_following_lm()):
        found = adapter.evaluate(batch, adapter.seed, capture_traces=True)
    assert found.scores == [0.5, 0.0, 0.5] and len(found.outputs) == len(found.trajectories) == 3
    assert found.objective_scores == [{"score": s, "exact": 0.0} for s in found.scores]
    feedback = adapter.make_reflective_dataset(adapter.seed, found, ["persona"])["persona"][1]["Feedback"]
    assert "ValueError: no such key" in feedback


def test_what_fails_on_all_examples_and_a_spent_budget_are_raised():
    agent = agent_of(SyntheticUser(seed=2))
    batch = agent.examples()[-2:]

    def broken(example, prediction, trace=None):
        raise ValueError("no such key")

    adapter = PersonaGEPAAdapter(agent, broken)
    with dspy.context(lm=rule_following_lm()), pytest.raises(ValueError, match="no such key"):
        adapter.evaluate(batch, adapter.seed)
    ledger = Ledger(budget=Budget(calls=1))
    adapter = PersonaGEPAAdapter(agent)
    with dspy.context(lm=rule_following_lm()), ledger.recording(), pytest.raises(BudgetExceeded):
        adapter.evaluate(batch, adapter.seed)

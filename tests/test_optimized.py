"""GEPA and the portrait as systems of the judge."""

import dspy

from optimizers import HeldOutGate
from persona_dspy import PersonaAgent
from persona_dspy.judge.optimized import GEPA, Portrait
from persona_dspy.lm import Ledger
from persona_dspy.testing import FakeLM, RuleFollower, SyntheticUser, rule_following_lm


def agent_of(n=30, seed=2):
    user = SyntheticUser(seed=seed)
    return PersonaAgent(user.signature, history=user.interactions(n))


def test_gepa_gets_better_within_its_calls_and_every_call_is_counted():
    agent, lm, ledger = agent_of(), rule_following_lm(), Ledger()
    with dspy.context(lm=lm), ledger.recording():
        made = GEPA(gate=HeldOutGate(6), calls=80).compile(agent, trainset=agent.examples())
    assert made.alignment.scores.final > made.alignment.scores.initial
    assert made.persona.value.version == 1 and agent.persona.value.version == 0
    assert ledger.usage.calls == len(lm.engine.calls) <= 80
    assert ledger.by_role["update"].calls > 0, "reflection is counted by its role"
    held = [i.query for i in agent.memory.interactions[-6:]]
    assert not any(q in turn[0] for p in lm.engine.calls for turn in p.turns for q in held)


def test_gepa_with_next_to_nothing_to_go_by_asks_nothing():
    agent, lm = agent_of(n=3), rule_following_lm()
    with dspy.context(lm=lm):
        made = GEPA(gate=HeldOutGate()).compile(agent, trainset=agent.examples())
    assert made.persona.value == agent.persona.value and not lm.engine.calls
    assert "too few" in made.alignment.stopped


def test_a_portrait_is_the_summary_and_the_counted_facts():
    def summary(prompt):
        if "lines" in prompt.outputs:
            return {"lines": [{"line": "Likes films about space best.", "examples": [1, 2]}]}
        return None

    agent = agent_of()
    with dspy.context(lm=FakeLM(summary, RuleFollower())):
        made = Portrait().compile(agent, trainset=agent.examples())
    text = made.persona.value.render()
    assert "Likes films about space best." in text
    assert any(b.source == "fact" for b in made.persona.value.bullets)
    with dspy.context(lm=rule_following_lm()):
        none = Portrait().compile(agent, trainset=agent.examples())
    assert none.persona.value == agent.persona.value

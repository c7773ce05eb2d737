"""Simulations: as of then, in order, concurrently, and what is kept of them."""

import dspy
import pytest

from optimizers.simulation import Simulator
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import ModelError
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm


def agent_of(n=20, **options):
    return PersonaAgent(SyntheticUser().signature, history=SyntheticUser().interactions(n), **options)


def test_one_for_each_in_order_whatever_the_concurrency():
    agent = agent_of()
    with dspy.context(lm=rule_following_lm()):
        one, many = (Simulator(agent, None, concurrency=c).run(agent.persona.value, agent.examples()) for c in (1, 4))
    assert [s.interaction_id for s in one] == [i.id for i in agent.memory.interactions]
    assert [(s.interaction_id, s.answer, s.score) for s in one] == [(s.interaction_id, s.answer, s.score) for s in many]
    assert {s.score for s in one} == {0.0, 1.0}


def test_what_led_to_an_answer_is_kept_and_was_earlier():
    agent = agent_of(recall_k=3)
    with dspy.context(lm=rule_following_lm()):
        found = Simulator(agent, None, held=frozenset({"i2"})).run(agent.persona.value, agent.examples()[10:])
    for simulated in found:
        assert len(simulated.episodes) == 3
        assert all(int(e[1:]) < int(simulated.interaction_id[1:]) for e in simulated.episodes)
        assert "i2" not in simulated.episodes
        responses = {i.id: i.response for i in agent.memory.interactions}
        assert simulated.recalled == tuple(responses[e] for e in simulated.episodes)
        assert not simulated.actions, "that it recalled by the query itself says nothing"


def test_an_answer_that_cannot_be_parsed_scores_nothing():
    agent = agent_of()
    with dspy.context(lm=FakeLM(lambda prompt: "gibberish"), adapter=dspy.JSONAdapter()):
        (simulated,) = Simulator(agent, None).run(agent.persona.value, agent.examples()[-1:])
    assert (simulated.score, simulated.answer) == (0.0, "")


def test_the_programs_own_persona_is_not_touched():
    agent = agent_of()
    other = Persona.from_text("Somebody else's style.", user_id=agent.user_id)
    before, lm = agent.persona.value, rule_following_lm()
    with dspy.context(lm=lm):
        Simulator(agent, None).run(other, agent.examples()[-1:])
    assert agent.persona.value == before
    assert "Somebody else's style." in lm.engine.calls[0].system


def test_examples_without_ids_do_not_see_their_own_answer():
    past = [Interaction(user_id="u", query="a ghost", response="comedy", id="a")]
    agent, lm = PersonaAgent("film -> tag", history=past), FakeLM(lambda prompt: {"tag": "comedy"})
    with dspy.context(lm=lm):
        Simulator(agent, None).run(
            agent.persona.value, [dspy.Example(film="a ghost", tag="comedy").with_inputs("film")]
        )
    assert not lm.engine.calls[0].turns


def test_what_is_known_beside_the_query_is_its_context():
    past = [
        Interaction(user_id="u", query="a ghost", response="comedy", id="a", metadata={"title": "Ghosts\nabroad"}),
        Interaction(user_id="u", query="a kiss", response="comedy", id="b", metadata={"title": "a kiss"}),
    ]
    agent = PersonaAgent("film -> tag", history=past)
    with dspy.context(lm=FakeLM(lambda prompt: {"tag": "comedy"})):
        found = Simulator(agent, None).run(agent.persona.value, agent.examples())
    assert [s.context for s in found] == ["title: Ghosts abroad", ""], "a title that is the query is told once"


def test_other_inputs_are_context_too():
    past = [Interaction(user_id="u", query="a ghost", response="comedy", id="a", metadata={"place": "the sea"})]
    agent = PersonaAgent("film, place -> tag", history=past)
    with dspy.context(lm=FakeLM(lambda prompt: {"tag": "comedy"})):
        (simulated,) = Simulator(agent, None).run(agent.persona.value, agent.examples())
    assert simulated.context == "place: the sea"


@pytest.mark.parametrize("rubbish", ["", "I'm sorry, I cannot help with that.", '{"tag": " "}', "[[ ## ta"])
def test_an_lm_that_answers_only_rubbish_is_an_error(rubbish):
    agent = agent_of()
    lm = FakeLM(lambda prompt: rubbish)
    with dspy.context(lm=lm), pytest.raises(ModelError, match="none of 4 answers of 'fake/lm' can be read"):
        Simulator(agent, None).run(agent.persona.value, agent.examples()[-4:])
    some = FakeLM(lambda prompt: {"tag": "sci-fi"} if agent.examples()[-1].description in prompt.user else rubbish)
    with dspy.context(lm=some):
        simulated = Simulator(agent, None).run(agent.persona.value, agent.examples()[-4:])
    assert [s.answer for s in simulated] == ["", "", "", "sci-fi"]

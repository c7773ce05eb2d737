from typing import Literal

import dspy
import pytest

from persona_dspy import Interaction, Persona, PersonaAgent
from persona_dspy.agent.steering import LEAST
from persona_dspy.errors import InputError
from persona_dspy.judge.baselines import RAG
from persona_dspy.testing.fake_lm import FakeLM

SIGNATURE = dspy.Signature({"film": (str, dspy.InputField()), "score": (Literal[1, 2, 3, 4, 5], dspy.OutputField())})


def past(*answers):
    return [Interaction(user_id="u", query=f"film {n}", response=str(a), id=str(n)) for n, a in enumerate(answers)]


def offered(agent, **options):
    """The answers that the LM could choose from."""
    seen = []

    def answer(prompt):
        seen.append(tuple(prompt.schema["properties"]["score"]["enum"]))
        return {"score": seen[-1][0]}

    lm = FakeLM(answer)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        if options:
            agent.simulate(agent.examples()[options["position"]], exclude=options.get("exclude", frozenset()))
        else:
            agent(film="another")
    return seen[-1]


def test_answers_are_those_the_user_gives_once_enough_are_known():
    few, enough = past(*[4, 5] * (LEAST // 2 - 1)), past(*[4, 5] * (LEAST // 2))
    assert offered(PersonaAgent(SIGNATURE, history=few)) == (1, 2, 3, 4, 5)
    assert offered(PersonaAgent(SIGNATURE, history=enough)) == (4, 5), "of the declared type, in its order"


def test_a_new_answer_is_offered_as_soon_as_it_is_given_and_a_rules_answer_always():
    agent = PersonaAgent(SIGNATURE, history=past(*[4, 5] * LEAST))
    agent.observe("a dull film", "1")
    assert offered(agent) == (1, 4, 5)
    ruled = Persona.from_text("what decides:\nx", user_id="u")
    rule = ruled.bullets[0].model_copy(update={"text": "", "when": 'it mentions "war"', "then": "2"})
    persona = agent.persona.value.model_copy(update={"bullets": (*agent.persona.value.bullets, rule)})
    assert offered(agent.with_persona(persona)) == (1, 2, 4, 5)


def test_a_simulation_knows_only_the_answers_before_it_and_nothing_excluded():
    agent = PersonaAgent(SIGNATURE, history=past(*[4, 5] * LEAST, 1, 2))
    assert offered(agent, position=2 * LEAST) == (4, 5)
    assert offered(agent, position=2 * LEAST + 1) == (1, 4, 5)
    assert offered(agent, position=2 * LEAST + 1, exclude=frozenset({str(2 * LEAST)})) == (4, 5)


@pytest.mark.parametrize("persona", [Persona(user_id="u"), Persona.from_text("Likes war films.", user_id="u")])
def test_a_persona_that_counts_nothing_bounds_nothing(persona):
    assert offered(PersonaAgent(SIGNATURE, history=past(*[4, 5] * LEAST), persona=persona)) == (1, 2, 3, 4, 5)


def test_all_declared_answers_on_request_and_the_users_own_for_a_baseline():
    enough = past(*[4, 5] * (LEAST // 2))
    assert offered(PersonaAgent(SIGNATURE, history=enough, labels="declared")) == (1, 2, 3, 4, 5)
    assert offered(RAG(SIGNATURE, history=enough)) == (1, 2, 3, 4, 5)
    assert offered(RAG(SIGNATURE, history=enough, labels="own")) == (4, 5)
    assert offered(RAG(SIGNATURE, history=enough[1:], labels="own")) == (1, 2, 3, 4, 5), "too few to tell"
    with pytest.raises(InputError, match="declared"):
        PersonaAgent(SIGNATURE, labels="mine")

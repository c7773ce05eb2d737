"""What of a persona acts beside its text: for small local LMs, and not for others."""

from typing import Literal

import dspy
import pytest

from persona_dspy import Bullet, Interaction, Persona, PersonaAgent
from persona_dspy.agent.steering import LEAST, MOST, Steering, narrowed, own_labels
from persona_dspy.core import Counts, ResponseKind
from persona_dspy.judge.baselines import RAG
from persona_dspy.memory import EpisodicMemory
from persona_dspy.testing.fake_lm import FakeLM

SIGNATURE = dspy.Signature({"film": (str, dspy.InputField()), "score": (Literal[1, 2, 3, 4, 5], dspy.OutputField())})


def past(*answers):
    return [Interaction(user_id="u", query=f"film {n}", response=str(a), id=str(n)) for n, a in enumerate(answers)]


def offered(agent, *, small=True, **options):
    """The answers that the LM could choose from."""
    seen = []

    def answer(prompt):
        seen.append(tuple(prompt.schema["properties"]["score"]["enum"]))
        return {"score": seen[-1][0]}

    lm = FakeLM(answer, small=small)
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
    rule = Bullet(section="what decides", words=("war",), then="2")
    persona = agent.persona.value.model_copy(update={"bullets": (*agent.persona.value.bullets, rule)})
    assert offered(agent.with_persona(persona)) == (1, 2, 4, 5)


def test_a_simulation_withholds_no_label():
    """The answer to be found may be the first of its kind: an LM that cannot give it learns nothing."""
    agent = PersonaAgent(SIGNATURE, history=past(*[4, 5] * LEAST, 1, 2))
    assert offered(agent) == (1, 2, 4, 5)
    for position in (2 * LEAST - 1, 2 * LEAST, 2 * LEAST + 1):
        assert offered(agent, position=position) == (1, 2, 3, 4, 5)
    assert offered(agent, position=2 * LEAST + 1, exclude=frozenset({"0"})) == (1, 2, 3, 4, 5)
    assert offered(agent.replaying()) == (1, 2, 3, 4, 5), "as DSPy's optimizers replay it"


@pytest.mark.parametrize("persona", [Persona(user_id="u"), Persona.from_text("Likes war films.", user_id="u")])
def test_a_persona_that_counts_nothing_bounds_nothing(persona):
    assert offered(PersonaAgent(SIGNATURE, history=past(*[4, 5] * LEAST), persona=persona)) == (1, 2, 3, 4, 5)


def test_all_declared_answers_on_request_and_the_users_own_for_a_baseline():
    enough = past(*[4, 5] * (LEAST // 2))
    assert offered(PersonaAgent(SIGNATURE, history=enough, steering=Steering(labels=False))) == (1, 2, 3, 4, 5)
    assert offered(RAG(SIGNATURE, history=enough)) == (1, 2, 3, 4, 5)
    assert offered(RAG(SIGNATURE, history=enough, labels="own")) == (4, 5)
    assert offered(RAG(SIGNATURE, history=enough[1:], labels="own")) == (1, 2, 3, 4, 5), "too few to tell"


# --- on for small local LMs, off for others -----------------------------------------------------------------------


def test_it_is_on_for_small_local_lms_and_off_for_others():
    assert Steering.of(FakeLM()) == Steering() == Steering(labels=True, recall=True, favour=True)
    for lm in (FakeLM(small=False), dspy.LM("openai/gpt-4o"), None):
        assert (
            Steering.of(lm) == Steering.off() == Steering(labels=False, recall=False, favour=False, nearest_last=False)
        )


def test_a_capable_lm_may_give_any_answer_unless_steering_is_asked_for():
    enough = past(*[4, 5] * LEAST)
    assert offered(PersonaAgent(SIGNATURE, history=enough), small=False) == (1, 2, 3, 4, 5)
    assert offered(PersonaAgent(SIGNATURE, history=enough, steering=Steering()), small=False) == (4, 5)
    assert offered(PersonaAgent(SIGNATURE, history=enough, steering=Steering.off())) == (1, 2, 3, 4, 5)


RULE = Bullet(section="what decides", words=("spacecraft",), then="sci-fi", source="learned")
RULED = Persona(user_id="u", bullets=(RULE,))
QUERY = "a spacecraft and the long way home"


@pytest.mark.parametrize("small", [True, False])
def test_rules_reach_recall_for_small_lms_alone(small):
    films = [Interaction(user_id="u", query=f"film of ship {n}", response="drama", id=str(n)) for n in range(20)]
    agent = PersonaAgent("film -> tag", history=films, persona=RULED)
    with dspy.context(lm=FakeLM(lambda prompt: {"tag": "drama"}, small=small)):
        steps = agent(film=QUERY + " by ship").trace.steps
    assert [(step.steered_by, "sci-fi" in step.query) for step in steps] == [
        ((RULE.id,), True) if small else ((), False)
    ]


def test_searched_are_content_words_and_what_a_fitting_rule_says():
    on, off = Steering(), Steering(recall=False)
    assert on.searched(QUERY, None, RULED) == ("spacecraft long home spacecraft sci-fi", (RULE.id,))
    assert on.searched("the horse", None, RULED) == ("the horse", ()), "hardly any words: the query itself"
    assert off.searched(QUERY, None, RULED) == (QUERY, ())
    assert on.searched(QUERY, None, None)[1] == ()


def test_favours_are_those_of_the_persona_where_it_may_steer():
    assert set(Steering().favours(QUERY, RULED)) == {"sci-fi"}
    assert Steering(favour=False).favours(QUERY, RULED) == Steering().favours(QUERY, None) == {}


KIND = ResponseKind.of(Literal["drama", "sci-fi", "horror"])


def counting(total, *bullets):
    line = Bullet(section="who", text="Counted.", counts=Counts(total=total, each=(("drama", total),)))
    return Persona(user_id="u", bullets=(line, *bullets))


def test_choices_are_labels_given_or_named_by_a_rule_where_the_persona_counts_enough():
    memory = EpisodicMemory(past(*["drama"] * LEAST))
    assert Steering().choices(KIND, counting(LEAST), memory) == ("drama",)
    assert Steering().choices(KIND, counting(LEAST, RULE), memory) == ("drama", "sci-fi")
    assert Steering(labels=False).choices(KIND, counting(LEAST), memory) == ()
    assert Steering().choices(KIND, counting(LEAST - 1), memory) == (), "too few are counted"
    assert Steering().choices(KIND, None, memory) == Steering().choices(KIND, counting(LEAST), None) == ()
    assert Steering().choices(ResponseKind.of(str), counting(LEAST), memory) == ()


def test_own_labels_need_enough_and_exclude_something():
    assert own_labels(KIND, EpisodicMemory(past(*["drama"] * (LEAST - 1)))) == ()
    assert own_labels(KIND, EpisodicMemory(past(*["drama", "horror", "sci-fi"] * LEAST))) == (), "nothing to exclude"
    assert own_labels(KIND, EpisodicMemory(past(*["drama"] * (MOST + 1)))) == ()


def test_a_signature_is_narrowed_once_and_to_labels_it_has():
    kept = narrowed(SIGNATURE, ("4", "5"))
    assert kept.output_fields["score"].annotation == Literal[4, 5]
    assert narrowed(SIGNATURE, ("4", "5")) is kept
    assert narrowed(SIGNATURE, ()) is narrowed(SIGNATURE, ("9",)) is SIGNATURE

"""Edits are checked against recent mistakes and what is like them, with no call that could not matter."""

import dspy
import pytest

from optimizers.mistakes import mistakes_of
from optimizers.simulation import Simulator
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.testing.fake_lm import FakeLM

OLD, NEW = Persona(user_id="u"), Persona.from_text("Loves to laugh.", user_id="u")


def alike_of(answer, judge=None):
    """(scores of incumbent and challenger on what is like the one mistake, calls under each); the user tags comedy."""
    past = [Interaction(user_id="u", query=f"a ghost {n}", response="comedy", id=f"i{n}") for n in range(6)]
    agent = PersonaAgent("film -> tag", history=past, recall_k=0)
    lm = FakeLM(lambda prompt: {"tag": answer("laugh" in prompt.system)})
    unseen, batch = agent.examples()[:4], agent.examples()[4:]
    simulator = Simulator(agent, None)
    with dspy.context(lm=lm):
        wrong = simulator.run(OLD, batch)
        mistakes = mistakes_of(
            simulator, batch, wrong, unseen, as_then=lambda p: p, as_now=lambda p: p, judge=judge
        )  # fmt: skip
        lm.engine.calls.clear()
        scores = mistakes.alike(OLD, NEW, range(len(mistakes.before)))
    asked = ["laugh" in call.system for call in lm.engine.calls]
    return scores, (asked.count(False), asked.count(True))


def test_what_the_challenger_answers_right_is_not_asked_of_the_incumbent():
    scores, calls = alike_of(lambda new: "comedy" if new else "horror")
    assert calls[0] == 0 < calls[1]
    assert sum(scores[1]) >= sum(scores[0]), "nothing got worse"


@pytest.mark.parametrize("right", [True, False])
def test_what_the_challenger_answers_wrong_is_asked_of_both(right):
    answers = iter(["horror", "horror"])  # the two mistakes; then the incumbent is right or wrong

    def answer(new):
        return "horror" if new else next(answers, "comedy" if right else "drama")

    (before, after), calls = alike_of(answer)
    assert calls[0] == calls[1] > 0
    assert (sum(after) >= sum(before)) is not right


def test_texts_that_an_lm_compares_are_asked_of_both():
    class Judge:
        def needed(self, example):
            return True

        def __call__(self, drafts, references):
            return [1.0] * len(drafts)

    (before, after), calls = alike_of(lambda new: "comedy" if new else "horror", Judge())
    assert calls[0] == calls[1] > 0
    assert set(before) == {0.5} and set(after) == {1.0}

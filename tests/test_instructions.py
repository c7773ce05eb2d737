"""What a model is told of its task."""

from typing import Literal

import dspy
import pytest

from persona_dspy import Interaction, PersonaAgent, personalize
from persona_dspy.agent.instructions import described, judged_by, with_task_told
from persona_dspy.core.answers import ResponseKind
from persona_dspy.testing.fake_lm import FakeLM

LABEL = ResponseKind.of(Literal["horror", "comedy"])
RATING = ResponseKind.of(Literal[1, 2, 3, 4, 5])
TEXT = ResponseKind.of(str)
KINDS = {"label": LABEL, "rating": RATING, "text": TEXT}


class Tag(dspy.Signature):
    """Tag the film.

    With care."""

    film: str = dspy.InputField(desc="its plot")
    year: int = dspy.InputField()
    tag: str = dspy.OutputField(desc="one word")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("label", ["exactly the user's own", "several would be true"]),
        ("rating", ["from 1 to 5", "how far"]),
        ("text", ["nearer", "how it says it"]),
    ],
)
def test_each_kind_of_answer_is_judged_in_its_way(kind, says):
    assert all(part in judged_by(KINDS[kind]) for part in says)
    assert len({judged_by(k) for k in KINDS.values()}) == 3


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_users_own_instructions_come_first_and_stay_whole(kind):
    told = with_task_told(Tag, kind)
    assert told.instructions.startswith(Tag.instructions)
    assert "this user's own past" in told.instructions and told.instructions.endswith(judged_by(kind))
    assert told.fields.keys() == Tag.fields.keys()
    assert "own past" not in Tag.instructions, "the user's signature is not changed"


def test_it_is_one_class_for_the_same_arguments():
    assert with_task_told(Tag, LABEL) is with_task_told(Tag, ResponseKind.of(Literal["horror", "comedy"]))
    assert with_task_told(Tag, LABEL) is not with_task_told(Tag, TEXT)


def test_a_description_holds_what_is_given_what_is_asked_and_how_it_is_judged():
    first, *middle, given_, last = described(Tag, "film", "tag", LABEL).splitlines()
    assert (first, middle) == ("Tag the film.", ["", "With care."])
    assert given_ == "Given: film (its plot), year. To be answered: tag (one word), one of: horror, comedy."
    assert last == judged_by(LABEL)


def test_labels_are_listed_for_labels_alone():
    assert "one of" not in described(Tag, "film", "tag", RATING) + described(Tag, "film", "tag", TEXT)


def test_fields_that_the_signature_lacks_are_named_all_the_same():
    assert "Given: film, year. To be answered: mood." in described(
        dspy.Signature("film, year -> tag"), "film", "mood", TEXT
    )


def test_the_request_of_an_agent_tells_the_task():
    past = [Interaction(user_id="u", query=f"film {n}", response="horror", id=str(n)) for n in range(4)]
    signature = dspy.Signature("film -> tag: Literal['horror', 'comedy']", "Tag the film.")
    agent, lm = PersonaAgent(signature, history=past), FakeLM(lambda prompt: {"tag": "horror"})
    with dspy.context(lm=lm):
        agent(film="Alien")
    system = lm.engine.calls[-1].system
    assert "Tag the film." in system and judged_by(agent.kind) in " ".join(system.split())


@pytest.mark.parametrize("program", ["agent", "personalized"])
def test_a_program_says_what_it_is_asked_in_its_own_words(program):
    signature = dspy.Signature("film -> tag", "Tag the film.")
    made = PersonaAgent(signature) if program == "agent" else personalize(dspy.ChainOfThought(signature), user_id="u")
    asked = made.asked()
    assert asked.startswith("Tag the film.\nGiven: film. To be answered: tag.")
    assert "Earlier turns" not in asked, "whoever reflects sees no turns"

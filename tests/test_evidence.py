"""What the past says about a rule, and what keeps coming up."""

from hypothesis import given
from hypothesis import strategies as st

from optimizers.evidence import RECENT, Momentum, support
from persona_dspy.persona import Bullet
from persona_dspy.records import Feedback, Interaction

GHOST = Bullet(section="decision rules", when='it mentions "ghost"', then="comedy")


def past(responses, query="a ghost"):
    return [Interaction(user_id="u", query=query, response=r, id=str(n)) for n, r in enumerate(responses)]


def test_only_interactions_with_its_words_count():
    assert support(GHOST, past(["comedy"] * 4, "a knight")).fitting == 0
    assert not support(GHOST, past(["horror"] * 4, "a knight")).contradicted
    assert not support(Bullet(section="style", text="Short."), past(["comedy"])).borne_out


def test_one_odd_response_decides_nothing_and_a_change_does():
    assert not support(GHOST, past(["comedy"] * 4 + ["horror"])).contradicted
    assert support(GHOST, past(["comedy"] * 4 + ["horror"] * 3)).contradicted
    assert support(GHOST, past(["horror"] * 3 + ["comedy"] * 5)).borne_out
    assert not support(GHOST, past(["comedy"])).borne_out


@given(st.lists(st.sampled_from(["comedy", "horror"]), max_size=12))
def test_support_is_a_share_of_the_latest(responses):
    found = support(GHOST, past(responses))
    late = responses[-RECENT:]
    assert found.fitting == len(late)
    assert found.agreeing == late.count("comedy")
    assert 0 <= found.share <= 1
    assert not (found.contradicted and found.borne_out)


def step(momentum, *texts):
    momentum.add([Feedback(interaction_id=str(n), score=0.0, text=t) for n, t in enumerate(texts)])


def test_what_recurs_in_other_words_weighs_more():
    momentum = Momentum()
    step(momentum, "This user likes short answers.", "Hates puns.")
    step(momentum, "This user likes very short answers.")
    step(momentum, "This user likes short answers only.", "Prefers tea.")
    assert momentum.recurring == [("This user likes short answers only.", 3)]


def test_twice_in_one_step_counts_once():
    momentum = Momentum()
    step(momentum, "Hates puns.", "Hates puns.", "hates puns")
    assert momentum.recurring == []

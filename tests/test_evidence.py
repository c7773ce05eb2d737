"""What the past says about a rule, and what keeps coming up."""

from hypothesis import given
from hypothesis import strategies as st

from optimizers.evidence import KEPT, RECENT, Evidence, Momentum, grounded, support
from optimizers.loss import Simulated
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Feedback, Interaction
from persona_dspy.core.persona import NOTHING_ELSE, Bullet

GHOST = Bullet(section="what decides", words=("ghost",), then="comedy")


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


def test_the_last_response_may_be_the_first_of_a_change():
    assert support(GHOST, past(["horror"] * 4 + ["comedy"])).turned
    assert not support(GHOST, past(["horror"] * 4)).turned
    assert not support(GHOST, past(["comedy"] * 4)).turned, "nothing speaks against it"


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


# --- which interactions a bullet rests on -------------------------------------------------------------------------

PAST = [
    *past(["comedy", "horror", "comedy"]),
    Interaction(user_id="u", query="a knight at the castle", response="comedy", id="knight"),
]


def resting(bullet, items=PAST, **values):
    found = grounded(bullet, Evidence(**{"kind": KIND, "simulated": (), "feedback": (), "past": items, **values}))
    assert found.hits >= len(found.evidence)
    return list(found.evidence)


KIND = ResponseKind(name="label", labels=("comedy", "horror"))


def test_a_rule_rests_on_what_was_answered_as_it_says_where_it_says():
    assert resting(GHOST) == ["0", "2"]
    free = Bullet(section="what decides", when="the query is about a knight", then="comedy")
    assert resting(free) == ["knight"]
    assert resting(Bullet(section="what decides", when="the query is about space", then="comedy")) == []
    assert resting(Bullet(section="what decides", when=NOTHING_ELSE, then="comedy")) == ["0", "2", "knight"]


def test_hits_count_all_and_the_latest_are_kept():
    many = past(["comedy"] * 9)
    found = grounded(GHOST, Evidence(kind=KIND, simulated=(), feedback=(), past=many))
    assert found.hits == 9
    assert list(found.evidence) == [i.id for i in many[-KEPT:]]


def test_a_phrase_rests_on_the_responses_that_have_it():
    items = past(["Well, a ghost", "so what", "well, no"])
    assert resting(Bullet(section="style", opening="well,", text='Starts with "well,".'), items) == ["0", "2"]
    assert resting(Bullet(section="style", ending="what", text='Ends with "what".'), items) == ["1"]
    quoting = Bullet(section="style", opening="'So' it", text="""Starts with "'So' it".""")
    assert resting(quoting, past(['"So" it is', "So it is"])) == ["0"], "quotation marks of a response are others there"


def wrong(number, query, gold="comedy", score=0.0):
    return Simulated(interaction_id=f"s{number}", query=query, answer="?", gold=gold, score=score)


def test_a_line_of_text_rests_on_the_mistakes_whose_feedback_it_takes_up():
    simulated = [wrong(0, "first"), wrong(1, "second"), wrong(2, "third", score=1.0)]
    texts = ["Likes cheerful endings most.", "Hates long sentences.", "Likes cheerful endings."]
    told = [Feedback(interaction_id=f"s{n}", score=0.0, text=t) for n, t in enumerate(texts)]
    line = Bullet(section="preferences", text="Prefers cheerful endings.")
    assert resting(line, simulated=simulated, feedback=told) == ["s0"]
    assert resting(Bullet(section="preferences", text="Drinks green tea."), simulated=simulated, feedback=told) == []


def test_without_such_feedback_it_rests_on_what_was_shown_with_its_words():
    simulated = [wrong(0, "cheerful endings of tales"), wrong(1, "something else")]
    line = Bullet(section="preferences", text="Prefers cheerful endings.")
    assert resting(line, simulated=simulated) == ["s0"]
    assert resting(line, past(["a", "b"], query="cheerful endings")) == ["0", "1"]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy import Interaction, Persona
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Episode
from persona_dspy.core.persona import Bullet
from persona_dspy.memory.ranking import RECENCY, RULE, counts_sentence, favoured, ranked
from persona_dspy.memory.user_facts import facts


def episode(position, response, score):
    item = Interaction(user_id="u", query=f"q{position}", response=response, id=str(position))
    return Episode(interaction=item, position=position, score=score)


@given(st.lists(st.tuples(st.sampled_from(["a", "b c", "[1]", "5"]), st.integers(1, 99)), unique_by=lambda x: x[0]))
def test_what_a_persona_says_of_counts_is_read_back(counts):
    total = sum(n for _, n in counts) + 3
    persona = Persona(user_id="u", bullets=(Bullet(section="who", text=counts_sentence(total, counts)),))
    assert favoured(persona, set()) == pytest.approx({label: n / total for label, n in counts})


def test_counted_facts_of_labels_and_ratings_favour_the_usual_response():
    for kind, usual in ((str, None), (int, "4")):
        past = [Interaction(user_id="u", query=f"q{n}", response="4" if n % 4 else "1", id=str(n)) for n in range(12)]
        persona = Persona(user_id="u").with_facts(facts(past, ResponseKind.of(kind)))
        assert max(favoured(persona, set()).items(), key=lambda kv: kv[1], default=(None,))[0] == usual


def test_a_rule_that_fits_adds_its_response_and_a_default_what_rules_leave_over():
    rule = Bullet(section="what decides", words=("robot",), then="sci-fi")
    default = Bullet(section="what decides", when="nothing else fits", then="drama")
    counted = default.model_copy(update={"source": "fact"})
    assert favoured(Persona(user_id="u", bullets=(rule, default)), {"robot"}) == {"sci-fi": RULE}
    assert favoured(Persona(user_id="u", bullets=(rule, default)), {"horse"}) == {"drama": RULE}
    assert favoured(Persona(user_id="u", bullets=(rule, counted)), {"horse"}) == {"drama": RULE}
    assert favoured(Persona(user_id="u", bullets=(counted,)), {"horse"}) == {}  # the counts say it already


def test_without_favours_the_order_of_recall_stays():
    given_ = [episode(3, "a", 2.0), episode(9, "b", 1.0), episode(1, "a", 0.5)]
    assert ranked(given_, {}, 2) == given_[:2]


def test_the_persona_and_recency_move_an_episode_up_and_relevance_still_counts():
    near, typical, newest = episode(0, "rare", 4.0), episode(1, "usual", 2.0), episode(8, "rare", 0.0)
    assert [e.position for e in ranked([near, typical, newest], {"usual": 0.9}, 3)] == [1, 0, 8]
    assert [e.position for e in ranked([near, typical, newest], {"usual": 0.1}, 3)] == [0, 1, 8]
    scores = {e.position: e.score for e in ranked([near, typical, newest], {"usual": 0.1}, 3)}
    assert scores[8] == pytest.approx(RECENCY)


def test_at_most_the_first_two_rules_that_fit_have_a_say():
    rules = [Bullet(section="what decides", when=f'it mentions "{w}"', then=w) for w in ("robot", "ghost", "horse")]
    assert favoured(Persona(user_id="u", bullets=tuple(rules)), {"robot", "ghost", "horse"}) == {
        "robot": RULE,
        "ghost": RULE,
    }


def test_only_the_first_two_rules_that_fit_favour_their_responses():
    rules = tuple(
        Bullet(section="what decides", when=f'it mentions "{word}"', then=then)
        for word, then in (("robot", "sci-fi"), ("ghost", "horror"), ("kiss", "romance"))
    )
    persona = Persona(user_id="u", bullets=rules)
    assert favoured(persona, {"robot", "ghost", "kiss"}) == {"sci-fi": RULE, "horror": RULE}
    assert favoured(persona, {"ghost", "kiss"}) == {"horror": RULE, "romance": RULE}

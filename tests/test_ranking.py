"""Which of the near episodes are shown: varied ones, or those that the persona favours."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy import Interaction, Persona
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Episode
from persona_dspy.core.persona import Bullet, Counts
from persona_dspy.memory.ranking import RECENCY, RULE, counted, favoured, ranked, varied
from persona_dspy.memory.user_facts import facts


def episode(position, response, score):
    item = Interaction(user_id="u", query=f"q{position}", response=response, id=str(position))
    return Episode(interaction=item, position=position, score=score)


def rules(**responses):
    return tuple(Bullet(section="what decides", words=(word,), then=then) for word, then in responses.items())


def near(answers, positions=None):
    """Episodes with these answers, nearest first; ``positions`` in time, by default the nearest is the oldest."""
    positions = range(len(answers)) if positions is None else positions
    return [episode(at, answer, -float(n)) for n, (at, answer) in enumerate(zip(positions, answers, strict=True))]


# --- varied -------------------------------------------------------------------------------------------------------


@st.composite
def recalled(draw, answers="abcdef", least=0):
    given_ = draw(st.lists(st.sampled_from(answers), min_size=least, max_size=30))
    return near(given_, draw(st.permutations(range(len(given_)))))


def answers_of(episodes):
    return [e.interaction.response for e in episodes]


@given(recalled(), st.integers(1, 16))
def test_as_many_as_there_is_room_for_and_each_once_nearest_first(episodes, k):
    chosen = varied(episodes, k)
    assert len(chosen) == min(k, len(episodes))
    assert [e.id for e in chosen] == [e.id for e in episodes if e.id in {c.id for c in chosen}]


@given(recalled(), st.integers(1, 16))
def test_the_choice_changes_nothing_and_is_always_the_same(episodes, k):
    before = list(episodes)
    assert varied(episodes, k) == varied(tuple(episodes), k)
    assert episodes == before


@given(recalled(least=1), st.integers(1, 16))
def test_the_nearest_of_all_is_among_them(episodes, k):
    assert episodes[0] in varied(episodes, k)


@given(recalled(), st.integers(2, 16))
def test_never_all_of_one_answer_while_others_are_among_the_candidates(episodes, k):
    if len(set(answers_of(episodes))) > 1:
        assert len(set(answers_of(varied(episodes, k)))) > 1


@given(recalled(), st.integers(1, 16))
def test_no_answer_has_more_than_half_of_the_places_while_others_are_left(episodes, k):
    chosen = varied(episodes, k)
    shown, there = Counter(answers_of(chosen)), Counter(answers_of(episodes))
    for answer, times in shown.items():
        if times > (k + 1) // 2:
            assert all(shown[other] == there[other] for other in there if other != answer)


@given(recalled("abc", least=1), st.integers(6, 16))
def test_every_answer_is_shown_where_half_of_the_places_are_enough_for_all(episodes, k):
    """Rare ones too, each by its nearest episode."""
    chosen = varied(episodes, k)
    nearest = {a: next(e for e in episodes if e.interaction.response == a) for a in answers_of(episodes)}
    assert {e.id for e in nearest.values()} <= {e.id for e in chosen}


def test_a_rare_answer_is_among_them_however_far_it_is():
    assert answers_of(varied(near("a" * 99 + "b"), 4)) == ["a", "a", "a", "b"]
    assert answers_of(varied(near("a" * 40 + "b" * 40 + "c"), 6)).count("c") == 1


def test_near_ones_and_recent_ones_take_turns():
    episodes = near("a" * 20)  # the nearest is the oldest
    assert [e.position for e in varied(episodes, 6)] == [0, 1, 2, 17, 18, 19]
    different = near("abcdefghijklmnopqrst")  # as free text is: only nearness and recency count
    chosen = [e.position for e in varied(different, 8)]
    assert chosen[:4] == [0, 1, 2, 3] and set(chosen[4:]) & {18, 19}


def test_on_a_scale_rare_answers_are_shown_as_often_as_they_come():
    chosen = varied(near("a" * 10 + "b" + "a" * 10), 6, every_answer=False)
    assert [e.position for e in chosen] == [0, 1, 2, 18, 19, 20]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_places_show_the_nearest_answers(k):
    chosen = varied(near("aabbcc"), k)
    assert chosen[0].position == 0 and len(chosen) == k


def test_a_frequent_answer_fills_what_others_leave():
    assert answers_of(varied(near("aaaaaaab"), 6)).count("a") == 5


# --- ranked -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["a", "b c", "[1]", "5"]), st.integers(1, 99)), unique_by=lambda x: x[0]))
def test_counts_favour_each_response_by_its_share(each):
    total = sum(n for _, n in each) + 3
    line = Bullet(section="who", text="Counted.", counts=Counts(total=total, each=tuple(each)))
    persona = Persona(user_id="u", bullets=(line,))
    assert favoured(persona, set()) == pytest.approx({label: n / total for label, n in each})
    assert counted(persona) == total


def test_what_only_reads_like_counts_favours_nothing():
    persona = Persona.from_text('Who:\nAnswers so far (4): "a" 3, "b" 1.', user_id="u")
    assert (favoured(persona, set()), counted(persona)) == ({}, 0)


def test_counted_facts_of_labels_and_ratings_favour_the_usual_response():
    for kind, usual in ((str, None), (int, "4")):
        past = [Interaction(user_id="u", query=f"q{n}", response="4" if n % 4 else "1", id=str(n)) for n in range(12)]
        persona = Persona(user_id="u").with_facts(facts(past, ResponseKind.of(kind)))
        assert max(favoured(persona, set()).items(), key=lambda kv: kv[1], default=(None,))[0] == usual


def test_a_rule_that_fits_adds_its_response_and_a_default_what_rules_leave_over():
    (rule,) = rules(robot="sci-fi")
    default = Bullet(section="what decides", when="nothing else fits", then="drama")
    counted_ = default.model_copy(update={"source": "fact"})
    assert favoured(Persona(user_id="u", bullets=(rule, default)), {"robot"}) == {"sci-fi": RULE}
    assert favoured(Persona(user_id="u", bullets=(rule, default)), {"horse"}) == {"drama": RULE}
    assert favoured(Persona(user_id="u", bullets=(rule, counted_)), {"horse"}) == {"drama": RULE}
    assert favoured(Persona(user_id="u", bullets=(counted_,)), {"horse"}) == {}  # the counts say it already


def test_without_favours_the_order_of_recall_stays():
    given_ = [episode(3, "a", 2.0), episode(9, "b", 1.0), episode(1, "a", 0.5)]
    assert ranked(given_, {}, 2) == given_[:2]


def test_the_persona_and_recency_move_an_episode_up_and_relevance_still_counts():
    close, typical, newest = episode(0, "rare", 4.0), episode(1, "usual", 2.0), episode(8, "rare", 0.0)
    assert [e.position for e in ranked([close, typical, newest], {"usual": 0.9}, 3)] == [1, 0, 8]
    assert [e.position for e in ranked([close, typical, newest], {"usual": 0.1}, 3)] == [0, 1, 8]
    scores = {e.position: e.score for e in ranked([close, typical, newest], {"usual": 0.1}, 3)}
    assert scores[8] == pytest.approx(RECENCY)


def test_only_the_first_two_rules_that_fit_favour_their_responses():
    persona = Persona(user_id="u", bullets=rules(robot="sci-fi", ghost="horror", kiss="romance"))
    assert favoured(persona, {"robot", "ghost", "kiss"}) == {"sci-fi": RULE, "horror": RULE}
    assert favoured(persona, {"ghost", "kiss"}) == {"horror": RULE, "romance": RULE}

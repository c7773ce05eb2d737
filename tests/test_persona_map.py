"""How alike personas are: similarity, positions, groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.core.persona import Bullet, Persona
from persona_dspy.errors import InputError
from persona_dspy.report.persona_map import jaccard, map_personas, nearest, persona_terms, spread

sets = st.lists(st.sets(st.sampled_from("abcdefg")), min_size=1, max_size=8)


def rule(when, then):
    return Bullet(section="what decides", when=f'it mentions "{when}"', then=then)


def fan(n, *loved):
    return Persona.from_text("\n".join(f"Loves {x} films." for x in loved), user_id=f"u{n}")


@settings(deadline=None)  # the first example pays for imports
@given(sets)
def test_jaccard_is_shared_over_all(given_sets):
    found = jaccard(given_sets)
    for i, one in enumerate(given_sets):
        for j, other in enumerate(given_sets):
            expected = 1.0 if i == j else len(one & other) / max(1, len(one | other))
            assert found[i, j] == pytest.approx(expected)


def test_opposite_rules_about_one_word_are_not_alike():
    one, other = (Persona(user_id="u", bullets=(rule("ghost", then),)) for then in ("horror", "comedy"))
    same = Persona(user_id="v", bullets=(rule("ghost", "horror"),))
    assert jaccard([persona_terms(p) for p in (one, other, same)])[0].tolist() == [1.0, 0.0, 1.0]


def test_phrases_that_every_user_has_do_not_count():
    fact = Bullet(section="who", text='Answered 4 times so far: "drama" 3 times.', source="fact")
    default = Bullet(section="what decides", when="nothing else fits", then="Drama")
    assert persona_terms(Persona(user_id="u", bullets=(fact, default))) == ["drama", "anything else → drama"]


def test_nearest_leaves_out_itself_and_strangers():
    matrix = jaccard([{"a", "b"}, {"a", "b"}, {"a"}, {"z"}])
    assert nearest(matrix, 2) == [[1, 2], [0, 2], [0, 1], []]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 50))
def test_a_spread_has_no_one_twice_and_keeps_shares(groups, limit):
    chosen = spread(groups, limit)
    assert len(chosen) == len(set(chosen)) == min(limit, len(groups))
    assert [groups[i] for i in chosen] == sorted(groups[i] for i in chosen)
    for group in set(groups):
        share = groups.count(group) * len(chosen) / len(groups)
        assert abs([groups[i] for i in chosen].count(group) - share) <= 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_personas_have_places_of_their_own(n):
    drawn = map_personas([fan(i, f"kind{i}") for i in range(n)])
    assert len(set(drawn.xy)) == n
    assert drawn.names == ("all personas",)


def test_equal_and_empty_personas_do_not_break_it():
    assert np.isfinite(map_personas([Persona(user_id=str(i)) for i in range(9)]).xy).all()
    assert np.isfinite(map_personas([fan(i, "horror") for i in range(9)]).xy).all()


def test_two_kinds_of_personas_are_two_groups_named_by_what_they_love():
    kinds = [("ghost", "demon"), ("wedding", "kiss")]
    personas = [fan(i, *kinds[i % 2], f"extra{i % 5}") for i in range(14)]
    drawn = map_personas(personas)
    assert drawn == map_personas(personas), "the same again"
    assert len(set(drawn.groups)) == 2
    assert {(drawn.groups[i], i % 2) for i in range(14)} in ({(0, 0), (1, 1)}, {(0, 1), (1, 0)})
    assert {*drawn.names} <= {f"Loves {word} films" for words in kinds for word in words}, "a line, not three words"
    near = np.array(drawn.xy)
    apart = np.linalg.norm(near[::2].mean(0) - near[1::2].mean(0))
    assert apart > np.linalg.norm(near[::2] - near[::2].mean(0), axis=1).mean()


def test_an_encoder_decides_what_is_near():
    personas = [fan(i, "horror") for i in range(12)]
    drawn = map_personas(personas, encoder=lambda texts: [[i % 2, 1 - i % 2, i / 1000] for i, _ in enumerate(texts)])
    assert {(drawn.groups[i], i % 2) for i in range(12)} in ({(0, 0), (1, 1)}, {(0, 1), (1, 0)})


def test_wrong_input_is_told():
    with pytest.raises(InputError, match=r"personas \[\]"):
        map_personas([])
    with pytest.raises(InputError, match="expected 1 vectors"):
        map_personas([fan(0, "x")], encoder=lambda texts: [[1.0], [2.0]])


def test_personas_with_nothing_in_common_are_no_groups():
    own = ["serious funny", "skip wizard dragon", "slow clever", "cosy sad", "romance", "kids adults robot"]
    drawn = map_personas([Persona.from_text(text, user_id=str(n)) for n, text in enumerate(own)])
    assert drawn.names == ("all personas",)
    assert set(drawn.groups) == {0}


def test_a_group_is_named_by_what_half_of_it_has():
    texts = [f"ghost own{chr(97 + n)} own{chr(97 + n)}" if n % 2 else f"rocket sole{chr(97 + n)}" for n in range(12)]
    drawn = map_personas([Persona.from_text(text, user_id=str(n)) for n, text in enumerate(texts)])
    assert set(drawn.names) == {"ghost", "rocket"}

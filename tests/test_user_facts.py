from typing import Literal

import dspy
import pytest

from persona_dspy import Interaction
from persona_dspy.core.answers import ResponseKind
from persona_dspy.memory.profile import SemanticMemory
from persona_dspy.memory.user_facts import content_words, facts, mined_rules
from persona_dspy.testing.fake_lm import FakeLM

TAGS = ResponseKind.of(Literal["comedy", "drama", "horror"])
STARS = ResponseKind.of(Literal[1, 2, 3, 4, 5])


def past(*pairs, **extra):
    return [
        Interaction(user_id="u", query=q, response=r, id=str(n), metadata={k: v[n] for k, v in extra.items()})
        for n, (q, r) in enumerate(pairs)
    ]


def said(items, kind):
    return [b.sentence for b in facts(items, kind)]


def test_labels_are_counted_with_a_default_where_one_prevails():
    items = past(*[(f"q{n}", "drama" if n % 3 else "comedy") for n in range(9)])
    assert said(items, TAGS)[:2] == [
        'Answered 9 times so far: "drama" 6 times, "comedy" 3 times.',
        'If nothing else fits, answer "drama".',
    ]
    even = past(*[(f"q{n}", ("drama", "comedy", "horror")[n % 3]) for n in range(9)])
    assert not any("nothing else" in s for s in said(even, TAGS))
    assert facts(items[:2], TAGS) == []


def test_ratings_say_level_counts_and_the_usual_score():
    items = past(*[(f"q{n}", "4" if n % 4 else "1") for n in range(12)])
    found = said(items, STARS)
    assert found[0].startswith("Rates near the middle: 3.2 on average")
    assert 'Answered 12 times so far: "4" 9 times, "1" 3 times.' in found
    assert 'If nothing else fits, answer "4".' in found


def test_every_fact_names_interactions_that_show_it():
    items = past(*[(f"q{n}", "drama" if n < 8 else "horror") for n in range(14)])
    for bullet in facts(items, TAGS):
        assert bullet.source == "fact"
        assert set(bullet.evidence) <= {i.id for i in items}
    lately = next(b for b in facts(items, TAGS) if "Lately" in b.sentence)
    assert set(lately.evidence) <= {str(n) for n in range(8, 14)}


def test_where_answers_only_point_at_a_place_the_users_own_topics_count():
    kind = ResponseKind.of(Literal["[1]", "[2]"])
    titles = ["Parsing with grammars", "Dependency parsing", "Parsing of speech", "Speech translation"]
    items = past(*[(f'[1]: "{t}" [2]: "noise"', "[1]") for t in titles], title=titles)
    (only,) = facts(items, kind)
    assert only.sentence == "Own work is often about: parsing (3), speech (2)."
    assert set(only.evidence) <= {"0", "1", "2", "3"}
    assert facts(past(("aaaa bbbb", "[1]"), ("cccc", "[2]"), ("dddd", "[1]")), kind) == []


def test_mined_rules_are_borne_out_and_rare_words_make_none():
    pairs = [("robot war", "horror"), ("robot love", "horror"), ("robot sea", "horror"), ("wedding", "comedy")]
    rules = mined_rules(past(*pairs, ("meadow", "drama"), ("river", "drama"), ("field", "comedy")), TAGS)
    assert [(r.words, r.then, r.hits) for r in rules] == [(("robot",), "horror", 3)]
    assert mined_rules(past(*pairs), ResponseKind.of(str)) == []
    mixed = [("robot war", "horror"), ("robot love", "comedy"), ("robot sea", "drama"), ("robot tea", "comedy")]
    assert mined_rules(past(*mixed), TAGS) == []


def test_content_words_leave_out_function_words_and_short_ones():
    assert content_words("The robot and the war of 1984, été") == {"robot"}


@pytest.mark.parametrize(("named", "kept"), [([1, 3], True), ([9], False), ([], False)])
def test_a_summary_line_needs_an_episode_that_shows_it(named, kept):
    items = past(("a film", "comedy"), ("a play", "drama"), ("a song", "comedy"))
    lm = FakeLM(lambda p: {"lines": [{"line": "Likes to laugh.", "examples": named}]})
    with dspy.context(lm=lm):
        bullets = SemanticMemory()(interactions=items).bullets
    assert [b.evidence for b in bullets] == ([("0", "2")] if kept else [])

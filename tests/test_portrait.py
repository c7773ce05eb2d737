"""A portrait of a user from the past: what is shown, what is kept of what the LM writes."""

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.portrait import Portrait, chosen, described
from optimizers.reflection import reflecting
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.text import count_tokens
from persona_dspy.errors import InputError
from persona_dspy.lm.sizes import Sizes
from persona_dspy.testing.fake_lm import FakeLM

KIND = ResponseKind(name="label", labels=("comedy", "drama", "horror"))


def past(*responses, **values):
    return [
        Interaction(user_id="u", query=f"film {n}", response=r, id=str(n), **values) for n, r in enumerate(responses)
    ]


def line(text="Laughs at ghosts.", examples=(1, 2), section="who", strength="clear"):
    return {"section": section, "text": text, "strength": strength, "examples": list(examples)}


def written(items, *lines, parts=1, sizes=None, merged=None):
    def lm(prompt):
        if "sets" in prompt.fields:
            return {"lines": list(merged or [])}
        return {"lines": list(lines)} if "lines" in prompt.outputs else None

    fake = FakeLM(lm, small=False)
    with reflecting(fake, sizes=sizes):
        return Portrait(parts=parts)(items, KIND, "Tag the film."), fake.engine.calls


def test_a_line_rests_on_the_examples_that_the_lm_names():
    (bullet,), (call,) = written(past("comedy", "drama", "comedy"), line(examples=(1, 3, 3, 99, 0, -2)))
    assert (bullet.text, bullet.section, bullet.source) == ("Laughs at ghosts.", "who", "summary")
    assert (bullet.evidence, bullet.hits, bullet.strength) == (("0", "2"), 2, "clear")
    assert call.fields["task"] == "Tag the film."
    assert '"comedy" 2, "drama" 1' in call.fields["counted"]
    assert "1. query: film 0\nthe person's response: comedy" in call.fields["past"]


def test_what_one_example_shows_by_itself_is_left_out():
    (bullet,), _ = written(past("comedy", "drama", "comedy"), line(examples=(2,)), line("Weeps.", examples=(1, 3)))
    assert bullet.text == "Weeps."


@pytest.mark.parametrize("examples", [(), (99,)])
def test_what_no_example_shows_is_weak(examples):
    (bullet,), _ = written(past("comedy", "drama", "comedy"), line(examples=examples, strength="strong"))
    assert bullet.strength == "weak" and bullet.sentence.endswith("(weak evidence)")


def test_empty_and_repeated_lines_and_those_over_a_section_are_left_out():
    assert [b.text for b in written(past(*["comedy"] * 3), line(), line(""), line(" a "), line())[0]] == [
        "Laughs at ghosts."
    ]
    sizes = Sizes.within(128_000)
    many = [line(f"{n} " + "word " * 60) for n in range(20)]
    bullets, _ = written(past(*["comedy"] * 3), *many, line("Short.", section="style"), sizes=sizes)
    assert sum(count_tokens(b.text) for b in bullets if b.section == "who") <= sizes.section
    assert 1 < len(bullets) < 20 and bullets[-1].text == "Short."


def test_nobody_is_asked_about_a_past_that_is_too_short():
    assert written(past("comedy", "drama"), line()) == ([], [])


def test_an_answer_that_cannot_be_read_is_no_portrait():
    fake = FakeLM(lambda prompt: "no json", small=False)
    with reflecting(fake) as account, dspy.context(adapter=dspy.JSONAdapter()):
        assert Portrait()(past(*["comedy"] * 4), KIND, "") == []
    assert len(account.unread) == 1


def test_a_long_past_is_read_in_parts_that_are_merged():
    items = past(*["comedy", "drama"] * 200)
    merged = [line("Laughs.", examples=(1, 2))]
    (bullet,), calls = written(items, line(), parts=2, merged=merged)
    assert len(calls) == 3
    first, second, merge = calls
    assert "film 399" in second.fields["past"] and "film 399" not in first.fields["past"]
    assert "1. who: Laughs at ghosts.\n\n2. who: Laughs at ghosts." in merge.fields["sets"]
    ids = set(bullet.evidence)
    assert bullet.text == "Laughs." and len(ids) == 4, "what the merged lines rest on"
    assert min(map(int, ids)) < 200 <= max(map(int, ids))


def test_a_past_that_fits_is_read_once_however_many_parts_are_allowed():
    assert len(written(past(*["comedy"] * 9), line(), parts=4)[1]) == 1


@pytest.mark.parametrize("parts", [0, -1])
def test_no_part_is_refused(parts):
    with pytest.raises(InputError, match="parts"):
        Portrait(parts=parts)


# --- what is shown ------------------------------------------------------------------------------------------------

PASTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 30)), max_size=40).map(
    lambda said: [
        Interaction(user_id="u", query=f"film {n} " + "word " * words, response=r, id=str(n))
        for n, (r, words) in enumerate(said)
    ]
)


@settings(deadline=None)
@given(PASTS, st.integers(1, 20), st.integers(20, 600))
def test_at_most_so_many_and_so_long_oldest_first(items, most, tokens):
    found = chosen(items, most, tokens)
    assert len(found) <= most
    assert [i.id for i in found] == [i.id for i in items if i.id in {f.id for f in found}]
    assert bool(found) == bool(items)
    if len(found) > 1:
        assert sum(count_tokens(i.query) + count_tokens(i.response) for i in found) <= tokens


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=9, max_size=60))
def test_every_answer_is_shown_and_the_latest(responses):
    found = chosen(past(*responses), 9, 10_000)
    assert {i.response for i in found} == set(responses)
    assert found[-1].id == str(len(responses) - 1)


def test_a_past_that_fits_is_shown_whole():
    items = past(*"abcabc")
    assert chosen(items, 6, 10_000) == items
    assert chosen([], 6, 10_000) == []


def test_alike_queries_with_other_answers_are_shown_side_by_side():
    items = past(*["drama"] * 40, *["horror"] * 10)
    at = {5: ("a ghost in the cellar", "comedy"), 20: ("ghost of the cellar", "horror")}
    items = [
        Interaction(user_id="u", query=at[n][0], response=at[n][1], id=i.id) if n in at else i
        for n, i in enumerate(items)
    ]
    assert {"5", "20"} <= {i.id for i in chosen(items, 9, 10_000)}


def test_an_interaction_is_described_with_its_title():
    (item,) = past("comedy", metadata={"title": "Alien"})
    assert described(item) == "title: Alien\nquery: film 0\nthe person's response: comedy"
    (plain,) = past("comedy", metadata={"title": "film 0"})
    assert not described(plain).startswith("title"), "the query says it"
    (long,) = past("word " * 500)
    assert count_tokens(described(long, most=40)) < 70 and "..." in described(long, most=40)

"""How two texts differ, as a person would mark it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.differences import differences

TEXTS = st.text("abc ,.!\n", max_size=60)


@pytest.mark.parametrize(
    ("ours", "own", "said"),
    [
        ("Dear Ana.", "Hi Ana.", ['"Dear" -> "Hi" (before: "Ana.")']),
        ("All is well here.", "All is here.", ['dropped "well" (after: "All is")']),
        ("All is here.", "All is well here.", ['added "well" (after: "All is")']),
        ("Dear Ana, it rains in the north.", "Nothing of that is so.", []),  # no version of the other
        ("old", "new", []),
        ("same words", "same  words", []),
        ("", "", []),
    ],
)
def test_a_change_says_what_where(ours, own, said):
    assert differences(ours, own) == said


def test_line_breaks_are_changes_that_can_be_read():
    (only,) = differences("One two.", "One\n\ntwo.")
    assert "⏎" in only and "\n" not in only


def test_the_largest_changes_are_told_in_order():
    ours = "a b c d e f g h i j k l m n o p q r s t"
    own = "a X c d e f g Y Y Y Y Y h i j k l m n o p q r s Z"
    assert len(differences(ours, own)) == 3
    two = differences(ours, own, most=2)
    assert len(two) == 2 and any("Y Y Y" in one for one in two)
    assert two == [one for one in differences(ours, own) if one in two]


@given(TEXTS, TEXTS, st.integers(1, 12))
def test_at_most_so_many_each_on_one_line(ours, own, most):
    found = differences(ours, own, most=most)
    assert len(found) <= most
    assert all("\n" not in one for one in found)


@given(TEXTS)
def test_a_text_does_not_differ_from_itself(text):
    assert differences(text, text) == []


@given(st.lists(st.sampled_from(["ana", "bob", "tea"]), min_size=2, max_size=8), st.integers(0, 8))
def test_a_word_that_was_put_in_is_named(words, at):
    found = differences(" ".join(words), " ".join([*words[:at], "rain", *words[at:]]))
    assert any("rain" in one for one in found)


def test_scripts_without_spaces_are_compared_by_character_and_words_keep_their_marks():
    found = differences("您好，非常感谢您的来信，我们已经处理。", "您好，我们已经处理。")
    assert found and "非常感谢您的来信" in found[0]
    assert differences("नमस्ते हिन्दी भाषा बहुत अच्छी है", "नमस्ते हिन्दी भाषा अच्छी है")[0].startswith('dropped "बहुत"')


def test_few_words_over_and_over_are_not_compared_for_seconds():
    assert differences("a b " * 600, "b a a " * 400) == []
    assert differences("a b " * 100, "b a a " * 66)

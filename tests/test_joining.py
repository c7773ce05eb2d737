"""Rows of one user that a stream holds apart: joined, in order, nothing lost and nothing kept in memory."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core.interactions import Interaction
from persona_dspy.data.interaction_rows import Question, UserHistory
from persona_dspy.data.joining import join_users
from persona_dspy.errors import DataError, InputError


def said(user, query, response="a", **more):
    return Interaction(user_id=user, query=query, response=response, **more)


def row(user, *interactions, questions=()):
    return UserHistory(user_id=user, interactions=interactions, questions=questions)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(min_size=1).filter(str.strip)), max_size=20))
def test_nothing_is_lost_and_users_come_as_they_were_first_met(pairs):
    joined = list(join_users(row(user, said(user, query)) for user, query in pairs))
    assert [u.user_id for u in joined] == list(dict.fromkeys(user for user, _ in pairs))
    for history in joined:
        own = [query for user, query in pairs if user == history.user_id]
        assert [i.query for i in history.interactions] == list(dict.fromkeys(own))  # one given twice is one
        assert len({i.id for i in history.interactions}) == len(history.interactions)


def test_times_order_metadata_and_questions_survive():
    late, early = (
        said("u", f"q{year}", time=f"{year}-02-03", id=str(year), metadata={"n": [year]}) for year in (2026, 1999)
    )
    asked = Question(id="q", query="what", gold="a", metadata={"input": "what?"})
    (joined,) = join_users([row("u", late, questions=(asked,)), row("u", early, questions=(asked,))])
    assert joined == row("u", early, late, questions=(asked,))


def test_one_id_for_two_things_is_an_error_that_names_the_row():
    twice = [row("u", said("u", "x", id="1")), row("u", said("u", "y", id="1"))]
    with pytest.raises(DataError, match=r"id 'u', field 'row 2: id': got '1'.*unique"):
        list(join_users(twice))
    asked = [row("u", questions=(Question(id="q", query=text),)) for text in "xy"]
    with pytest.raises(DataError, match="row 2: id"):
        list(join_users(asked))


def test_metadata_that_is_no_json_is_said():
    with pytest.raises(InputError, match=r"user 'u'.*JSON"):
        list(join_users([row("u", said("u", "x", metadata={"x": object()}))]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows():
    def peak(users):
        tracemalloc.start()
        seen = sum(1 for _ in join_users(row(f"u{n}", said(f"u{n}", "x" * 500)) for n in range(users)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen == users
        return most

    peak(10)
    assert peak(4000) < peak(400) + 500_000  # their texts alone are 2 MB; Python keeps some free tuples

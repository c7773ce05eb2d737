import pytest

from persona_dspy import Interaction
from persona_dspy.data.interaction_rows import Question, UserHistory
from persona_dspy.data.lamp import get_task
from persona_dspy.errors import InputError
from persona_dspy.judge.people import cases, longest, scored_as
from persona_dspy.testing.synthetic import SyntheticUser

USERS = [
    UserHistory(user_id=f"s{n}", interactions=tuple(SyntheticUser(seed=n, user_id=f"s{n}").interactions(24)))
    for n in range(3)
]
PEOPLE = cases(USERS)


def test_the_latest_quarter_is_held_out_and_the_files_own_queries_come_first():
    assert [len(c.queries) for c in PEOPLE] == [6, 6, 6]
    held = {q.id for q in PEOPLE[0].queries}
    assert not held & {i.id for i in PEOPLE[0].history}
    assert min(q.time for q in PEOPLE[0].queries) > max(i.time for i in PEOPLE[0].history)
    own = (Question(id="q1", query="x", gold="y"), Question(id="q2", query="x"), Question(id="q3", query="z", gold="y"))
    user = UserHistory(user_id="u", interactions=USERS[0].interactions, questions=own)
    (case,) = cases([user], get_task("lamp-2m"), queries=1)
    assert [q.id for q in case.queries] == ["q1"]
    assert len(case.history) == 24
    assert cases([UserHistory(user_id="u", interactions=USERS[0].interactions[:1])]) == []


def test_users_without_a_common_task_are_scored_together_but_prompted_apart():
    tasks = [c.task for c in PEOPLE]
    assert len({t.labels for t in tasks}) > 1
    assert set(scored_as(PEOPLE).labels) >= set().union(*(t.labels for t in tasks))
    rated = [Interaction(user_id="r", query=f"q{n}", response=str(n % 5 + 1), id=str(n)) for n in range(12)]
    with pytest.raises(InputError, match="one kind for all"):
        scored_as([*PEOPLE, *cases([UserHistory(user_id="r", interactions=tuple(rated))])])


def test_withheld_answers_are_asked_for_only_where_wanted():
    asked = (Question(id="q1", query="x"), Question(id="q2", query="z", gold="y"))
    user = UserHistory(user_id="u", interactions=USERS[0].interactions, questions=asked)
    assert [q.id for c in cases([user]) for q in c.queries] == ["q2"]
    assert [q.id for c in cases([user], unanswered=True) for q in c.queries] == ["q1", "q2"]
    assert len(cases([user], unanswered=True)[0].history) == 24, "the file's own queries: nothing is held out"


def test_the_longest_histories():
    users = [UserHistory(user_id=f"u{n}", interactions=USERS[0].interactions[:n]) for n in (3, 9, 1, 9)]
    assert [len(u.interactions) for u in longest(users, 3)] == [9, 9, 3]

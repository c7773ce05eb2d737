import pickle
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.core.metrics import HIGHER_IS_BETTER
from persona_dspy.data.lamp import get_task, task_names
from persona_dspy.data.tasks import Place, checked_text, read_time
from persona_dspy.errors import DataError, InputError

TASKS = [get_task(name) for name in task_names()]
words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_signature_is_typed_and_cached(task):
    signature = task.signature()
    assert list(signature.input_fields) == [task.query_field]
    assert list(signature.output_fields) == [task.response_field]
    assert signature.instructions == task.instructions
    kind = signature.output_fields[task.response_field].annotation
    assert (get_args(kind) == task.choices) if task.choices else kind is str
    assert task.signature() is signature
    assert task.signature("Another.").instructions == "Another."


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_the_gold_itself_scores_best(task):
    gold = (task.choices or ("a short title",))[0]
    assert task.score(gold, gold) == 1
    assert task.score(gold, None) == 0
    values = task.evaluate([gold, gold], [gold, gold])
    assert tuple(values) == task.metrics
    best = {name: (1.0 if HIGHER_IS_BETTER[name] else 0.0) for name in values}
    best |= {"macro_f1": 1 / len(task.choices)} if "macro_f1" in values else {}
    assert values == pytest.approx(best, abs=0.005)


@settings(deadline=None)
@given(st.data())
def test_scores_are_in_range_and_rank_with_the_metrics(data):
    task = data.draw(st.sampled_from(TASKS))
    gold = data.draw(st.sampled_from(task.choices) if task.choices else words)
    answer = data.draw(st.one_of(st.text(max_size=20), st.integers(), st.none()))
    assert 0 <= task.score(gold, answer) <= 1


@pytest.mark.parametrize(("name", "value", "expected"), [("lamp-2m", " Sci-Fi ", "sci-fi"), ("lamp-3", 4.0, "4")])
def test_responses_are_written_as_the_task_writes_them(name, value, expected):
    assert get_task(name).parse_response(value) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("lamp-2m", "western"), ("lamp-2m", None), ("lamp-2m", True), ("lamp-3", "4.5"), ("lamp-3", 6), ("lamp-4", " ")],
)
def test_other_responses_are_refused(name, value):
    with pytest.raises(DataError, match=r"f\.json, line 3, field 'tag'"):
        get_task(name).parse_response(value, Place(file="f.json", line=3), "tag")


@pytest.mark.parametrize("value", [None, "", " \n", True, [], {}, "a\0b", "\ud800"])
def test_text_that_cannot_be_kept_is_refused(value):
    with pytest.raises(DataError):
        checked_text(value, Place(), "query")


@pytest.mark.parametrize("value", ["soon", "2026-13-01", 20261, True, [], 1e99])
def test_bad_dates_are_refused(value):
    with pytest.raises(DataError, match="an ISO date"):
        read_time(value, Place(), "time")


def test_places_nest():
    error = Place(file="u.json", row_id="7").inside("profile[2].").error("tag", "x", "a tag")
    assert str(error).startswith("u.json, id '7', field 'profile[2].tag': got 'x', expected a tag")


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_tasks_cross_processes(task):
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert hash(task) == hash(pickle.loads(pickle.dumps(task)))  # noqa: S301


def test_evaluate_refuses_a_gold_the_task_does_not_have():
    with pytest.raises(InputError, match="gold 'western'"):
        get_task("lamp-2m").evaluate(["western"], ["comedy"])

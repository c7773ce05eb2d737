"""One call from a file to a table."""

import json

import dspy
import pytest

from persona_dspy import Interaction
from persona_dspy.data import UserHistory, get_task
from persona_dspy.errors import DataError, InputError
from persona_dspy.judge import Experiment, evaluate
from persona_dspy.lm import Budget
from persona_dspy.testing import FakeLM, RuleFollower, SyntheticUser


def fake_lm():
    def think(prompt):
        return {"thought": "t", "action": "recall", "words": "x"} if "action" in prompt.outputs else None

    return FakeLM(think, RuleFollower(heeds_turns=True))


def past(users=3, n=16):
    return [i for u in range(users) for i in SyntheticUser(seed=u, user_id=f"s{u}").interactions(n)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [
        {"user_id": i.user_id, "id": i.id, "query": i.query, "response": i.response, "time": i.time.isoformat()}
        for i in past()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_and_names_in_a_table_answers_and_figures_out(file, tmp_path):
    lm, before = fake_lm(), dspy.cache
    found = evaluate(str(file), systems=["direct", "rag"], lm=lm, out=tmp_path / "out")
    assert dspy.cache is before, "DSPy's cache is as it was"
    assert found.complete and [s.system for s in found.table] == ["direct", "rag", "majority", "nearest"]
    assert found.table.system("rag").score.value == found.table[1].score.value
    with pytest.raises(KeyError, match="gepa"):
        found.table.system("gepa")
    frame = found.table.to_pandas()
    assert list(frame["system"]) == [s.system for s in found.table]
    assert frame["accuracy"][1] == found.table[1].score.value
    assert len(found.to_pandas()) == len(found.to_dataset()) == 4 * 12
    assert found.to_dataset()[0]["system"] in {"direct", "rag", "majority", "nearest"}
    assert [t.x[0] for t in found.plot().data] == [s.score.value for s in found.table]
    assert "<td>rag</td>" in found._repr_html_() and "| rag |" in str(found)
    assert (tmp_path / "out" / "table.md").read_text() == found.table.to_markdown()
    assert found.protocol["model"] == "fake/lm" and found.protocol["k"] == 4
    calls = len(lm.engine.calls)
    again = evaluate(str(file), systems=["direct", "rag"], lm=lm, out=tmp_path / "out")
    assert again.table == found.table and len(lm.engine.calls) == calls, "a rerun asks nothing"


def test_values_are_taken_as_files_are(file, tmp_path):
    from_file = evaluate(file, systems=["rag"], lm=fake_lm(), out=tmp_path / "a")
    from_values = evaluate(past(), systems=["rag"], lm=fake_lm(), out=tmp_path / "b")
    assert from_file.table[0].score == from_values.table[0].score
    users = [UserHistory(user_id="s1", interactions=tuple(i for i in past() if i.user_id == "s1"))]
    assert evaluate(users, systems=[], out=tmp_path / "c").table[0].users == 1
    with pytest.raises(InputError, match="UserHistory"):
        evaluate([("a", "b")], systems=[], out=tmp_path / "d")
    with pytest.raises(DataError, match="whose answers are known"):
        evaluate([], systems=[], out=tmp_path / "d")


def test_users_by_name_number_and_length(tmp_path):
    source = [*past(2, 12), *SyntheticUser(seed=7, user_id="long").interactions(30)]

    def people(users):
        found = Experiment(source, systems=[], users=users, out=tmp_path / "o").people
        return [p.user_id for p in found]

    assert people(1) == ["s0"]
    assert people("longest:1") == ["long"]
    assert people(["s1", "long"]) == ["s1", "long"]
    assert people("s1") == ["s1"]


def test_the_default_point_of_a_curve_is_the_plain_row(tmp_path):
    options = {"systems": ["persona", "rag@k=12"], "scale": ["epochs=1,3", "k=2,12"], "references": False}
    names = [v.name for v in Experiment(past(), out=tmp_path, **options).chosen]
    assert names == ["persona", "rag", "persona@epochs=1", "persona@k=2"]
    names = [v.name for v in Experiment(past(), out=tmp_path, **options, epochs=1).chosen]
    assert names == ["persona", "rag", "persona@epochs=3", "persona@k=2"]


def test_a_budget_ends_the_run_and_the_same_call_goes_on(tmp_path):
    options = {"systems": ["direct", "persona"], "out": tmp_path}
    lm = fake_lm()
    found = evaluate(past(), lm=lm, budget=Budget(calls=10), workers=1, **options)
    assert not found.complete and "calls" in found.stopped and "not complete" in found._repr_html_()
    assert len(lm.engine.calls) == 10
    again = evaluate(past(), lm=lm, **options)
    assert again.complete and again.stopped == ""


def test_what_cannot_be_is_said_before_anything_is_asked(tmp_path):
    with pytest.raises(InputError, match="size"):
        evaluate(past(), lm=fake_lm(), out=tmp_path, size=3)
    with pytest.raises(InputError, match="plan or react"):
        evaluate(past(), lm=fake_lm(), out=tmp_path, knowledge="wikipedia:me@example.org")
    with pytest.raises(InputError, match="k -1"):
        evaluate(past(), lm=fake_lm(), out=tmp_path, k=-1)
    with dspy.context(lm=None), pytest.raises(InputError, match='lm="local"'):
        evaluate(past(), out=tmp_path)
    assert not (tmp_path / "answers.jsonl").exists()


def test_withheld_answers_are_predicted_in_the_benchmarks_form(tmp_path):
    task = get_task("lamp-2m")
    profile = tuple(
        Interaction(user_id="u", query=f"film {n}", response="comedy" if n % 3 else "action", id=str(n))
        for n in range(9)
    )
    from persona_dspy.data import Question

    asked = (Question(id="310", query="a film", metadata={"input": "description: a film"}),)
    users = [UserHistory(user_id="u", interactions=profile, questions=asked)]
    found = evaluate(users, task=task, systems=[], out=tmp_path, unanswered=True)
    assert found.predictions("majority") == {"task": "LaMP_2", "golds": [{"id": "310", "output": "comedy"}]}
    assert len(found.table) == 0, "nothing to score by"
    with pytest.raises(InputError, match="no answers"):
        found.predictions("rag")


def test_a_retriever_object_is_used_by_every_system(tmp_path):
    from persona_dspy.memory import Dense

    seen = []

    def letters(texts):
        seen.extend(texts)
        return [[t.count(c) + 1.0 for c in "abcdefgh"] for t in texts]

    dense = Dense(encoder=letters, name="letters")
    found = evaluate(past(1), systems=["rag"], lm=fake_lm(), out=tmp_path, retrieval=dense)
    assert found.complete and seen and found.protocol["retrieval"] == "letters"
    with pytest.raises(InputError, match="retrieval"):
        evaluate(past(1), systems=["rag"], lm=fake_lm(), out=tmp_path)

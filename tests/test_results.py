import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.core.interactions import Usage
from persona_dspy.errors import DataError, InputError
from persona_dspy.judge.results import Judged, Results, commit, data_hash

PROTOCOL = {"task": "lamp-2m", "k": 4}


def row(**what):
    return Judged(**{"system": "rag", "user_id": "u", "query_id": "1", "gold": "a", "answer": "a", **what})


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_rows_come_back_as_they_were_written(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("r")
    results = Results(folder, PROTOCOL, {})
    rows = [row(user_id=user, answer=answer, usd=0.5) for user, answer in texts]
    for one in rows:
        results.add(one)
    assert Results(folder, PROTOCOL, {}).rows == rows


def test_a_torn_last_line_is_cut_and_the_next_row_is_whole(tmp_path):
    results = Results(tmp_path, PROTOCOL, {})
    results.add(row(query_id="1"))
    with results.path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "answer", "system": "ra')
    again = Results(tmp_path, PROTOCOL, {})
    assert again.answered("rag", "u") == {"1"}
    again.add(row(query_id="2"))
    assert Results(tmp_path, PROTOCOL, {}).answered("rag", "u") == {"1", "2"}


def test_other_settings_in_the_same_folder_are_refused_and_runs_are_kept(tmp_path):
    Results(tmp_path, PROTOCOL, {"commit": "one"})
    Results(tmp_path, PROTOCOL, {"commit": "two"})
    with pytest.raises(InputError, match=r"k: \[4\], now \[8\]"):
        Results(tmp_path, {**PROTOCOL, "k": 8}, {})
    kept = json.loads((tmp_path / "protocol.json").read_text())
    assert [r["commit"] for r in kept["runs"]] == ["one", "two"]
    assert kept["task"] == "lamp-2m"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"runs": 3}', b'{"k": "\xe9"}'])
def test_a_broken_protocol_is_named(tmp_path, broken):
    path = tmp_path / "protocol.json"
    path.write_bytes(broken)
    with pytest.raises(InputError, match=r"protocol\.json.*another --out"):
        Results(tmp_path, PROTOCOL, {})
    assert path.read_bytes() == broken


def test_a_broken_line_is_named(tmp_path):
    Results(tmp_path, PROTOCOL, {}).add(row())
    path = tmp_path / "answers.jsonl"
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(DataError, match="line 2"):
        Results(tmp_path, PROTOCOL, {})


def test_only_answers_count_as_answered_and_costs_are_those_of_the_usage():
    usage = Usage(calls=2, input_tokens=10, output_tokens=3, cached_tokens=4, seconds=1.5, usd=0.1)
    made = Judged.of(usage, 2.0, system="pag", user_id="u", kind="prepared")
    assert (made.calls, made.tokens, made.lm_seconds, made.seconds, made.usd) == (2, 13, 1.5, 2.0, 0.1)


def test_preparation_is_no_answer(tmp_path):
    results = Results(tmp_path, PROTOCOL, {})
    results.add(row(kind="prepared", query_id="1"))
    assert results.answered("rag", "u") == set()


def test_the_data_hash_covers_the_golds_beside_it(tmp_path):
    questions, outputs = tmp_path / "dev_questions.json", tmp_path / "dev_outputs.json"
    questions.write_text("[]")
    alone = data_hash(questions)
    outputs.write_text("{}")
    both = data_hash(questions)
    outputs.write_text("{ }")
    assert len({alone, both, data_hash(questions)}) == 3
    assert commit().startswith("persona-dspy ")

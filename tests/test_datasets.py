import json
import os

import pytest

from persona_dspy.data.datasets import as_dataset, history_of
from persona_dspy.data.files import read_users
from persona_dspy.errors import DataError


@pytest.fixture
def path(tmp_path):
    asked = {"id": "10", "input": "description: New.", "gold": "action", "date": "2021-01-01"}
    films = [{"id": n, "tag": "comedy", "description": f"Film {n}", "date": f"2020-01-0{9 - n}"} for n in range(3)]
    undated = [{"id": "x", "tag": "action", "description": "Film", "title": "T"}]
    users = [
        {"user_id": "a", "profile": films, "query": [asked]},
        {"user_id": 2, "profile": undated, "query": []},
        {"user_id": "none yet", "profile": [], "query": []},
    ]
    (tmp_path / "users.json").write_text(json.dumps(users))
    return tmp_path / "users.json"


def test_a_dataset_gives_back_the_same_histories(path, tmp_path):
    data = as_dataset(path, "lamp-2m", cache_dir=tmp_path / "cache")
    assert [history_of(row) for row in data] == list(read_users(path, task="lamp-2m"))
    assert data.cache_files
    assert all(str(tmp_path) in file["filename"] for file in data.cache_files)


def test_a_changed_file_is_read_anew(path, tmp_path):
    first = as_dataset(path, "lamp-2m", cache_dir=tmp_path / "cache")
    path.write_text(path.read_text().replace("Film 1", "Film one"))
    os.utime(path, ns=(1, 1))
    second = as_dataset(path, "lamp-2m", cache_dir=tmp_path / "cache")
    assert "Film 1" in str(first[0])
    assert "Film one" in str(second[0])


def test_bad_rows_are_our_error_or_passed_over(path, tmp_path):
    path.write_text(path.read_text().replace("comedy", "western", 1))
    with pytest.raises(DataError, match="western"):
        as_dataset(path, "lamp-2m", cache_dir=tmp_path / "cache")
    data = as_dataset(path, "lamp-2m", cache_dir=tmp_path / "cache", skip_bad_rows=True)
    assert len(history_of(data[0]).interactions) == 2


def test_signals_come_back_too(tmp_path):
    rows = [
        {"user_id": "u", "query": "q", "draft": "d", "thumbs": "down"},
        {"user_id": "u", "query": "q", "response": "r"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [history_of(row) for row in as_dataset(file, cache_dir=tmp_path / "cache")] == list(read_users(file))

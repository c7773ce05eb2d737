import json
import warnings

import pyarrow as pa
import pytest
from pyarrow import parquet

from persona_dspy.data.columns import columns_from_text
from persona_dspy.data.files import read_users
from persona_dspy.errors import DataError, InputError


def read(path, **options):
    return [i for user in read_users(path, **options) for i in user.interactions]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "﻿author;text of;prompt;tag;created\n007;x;Alien;horror;1767398400\n"
        '007;y;"Heat; again\nand again";NA;1767398400000\n'
    )
    return path


def test_columns_are_guessed_and_the_guess_is_said(table):
    with pytest.warns(UserWarning, match=r"'author' is taken as user_id.*as time; kept as metadata: text of"):
        found = read(table)
    assert [(i.user_id, i.query, i.response) for i in found] == [
        ("007", "Alien", "horror"),
        ("007", "Heat; again\nand again", "NA"),
    ]
    assert found[0].time == found[1].time and found[0].time.year == 2026 and found[0].metadata == {"text of": "x"}


def test_typed_columns_win(table):
    typed = columns_from_text("user_id='ana',query=text of,response=tag,time=created")
    assert [(i.user_id, i.query) for i in read(table, columns=typed)] == [("ana", "x"), ("ana", "y")]


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"user": "author"}, "expected a field of user_id"),
        ({"user_id": "writer"}, "a column of author, text of"),
        ({"user_id": "author", "query": "author"}, "one field a column"),
    ],
)
def test_slips_in_columns_are_named(table, columns, expected):
    with pytest.raises(InputError, match=expected):
        read(table, columns=columns)
    with pytest.raises(InputError, match="field=column"):
        columns_from_text("user_id")


@pytest.mark.parametrize(
    "header, row, expected",
    [
        ("user,author,query,response", "a,b,c,d", "one column for user_id, not 'user' and 'author'"),
        ("user_id,query", "a,b", "a column for response"),
        ("user_id,query,query,response", "a,b,c,d", "'query' is there twice"),
        ("user_id,query,response", "a,b,c,d", "expected a csv file"),
    ],
)
def test_a_table_that_could_be_read_in_two_ways_is_refused(tmp_path, header, row, expected):
    (tmp_path / "t.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "t.csv")


def test_json_rows_that_have_all_that_is_needed_are_left_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"user_id": "u", "query": "q", "response": "r", "created": 3}')
    with pytest.raises(DataError, match="created"):
        read(tmp_path / "a.jsonl")


def test_chats_are_interactions_or_drafts(tmp_path):
    said = [("system", "s"), ("user", "hi"), ("assistant", "yo"), ("user", "bye"), ("assistant", "ciao")]
    chat = {"user": "u1", "messages": [{"role": role, "content": content} for role, content in said]}
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(chat))
    with pytest.warns(UserWarning, match="type --columns draft=messages"):
        assert [(i.user_id, i.query, i.response) for i in read(path)] == [("u1", "hi", "yo"), ("u1", "bye", "ciao")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drafts = read(path, columns={"user_id": "user", "draft": "messages"})
    assert [(i.response, i.signal.draft) for i in drafts] == [("", "yo"), ("", "ciao")]


def test_signals_stand_in_cells(tmp_path):
    (tmp_path / "s.csv").write_text(
        'user_id,query,options,response,rating,draft\nu,q,a | b,a,,\nu,r,"[""a"", ""c""]",,4,Hi\n'
    )
    one, other = read(tmp_path / "s.csv")
    assert one.signal.options == ("a", "b") and other.signal.rating == 4 and other.signal.options == ("a", "c")


def test_a_row_that_python_cannot_hold_is_named_and_the_others_are_read(tmp_path):
    times = pa.array([0, 253402300800 + 10**9, 60], pa.timestamp("s"))
    rows = {"user_id": ["ana", "ana", "bob"], "query": ["a", "b", "c"], "response": ["x", "y", "z"], "time": times}
    parquet.write_table(pa.table(rows), tmp_path / "late.parquet")
    with pytest.raises(DataError, match=r"late\.parquet, id '#2'.*year 9999"):
        list(read_users(tmp_path / "late.parquet"))
    users = read_users(tmp_path / "late.parquet", skip_bad_rows=True)
    assert sorted((u.user_id, i.query) for u in users for i in u.interactions) == [("ana", "a"), ("bob", "c")]
    twice = pa.Table.from_arrays([pa.array(["a"])] * 4, names=["user_id", "query", "response", "user_id"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="'user_id' is there twice"):
        list(read_users(tmp_path / "twice.parquet"))
    (tmp_path / "deep.csv").write_text('user_id,query,response,metadata\na,q,r,"' + "[" * 100_000 + '"\n')
    with pytest.raises(DataError, match="field 'metadata'"):
        list(read_users(tmp_path / "deep.csv"))

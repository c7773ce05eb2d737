import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.data.files import detect_task, read_users
from persona_dspy.data.lamp import get_task
from persona_dspy.errors import DataError, InputError, PersonaError, UnknownUser

DATA = Path(os.environ.get("PERSONA_DSPY_DATA") or Path(__file__).parents[2] / "shared" / "data")
ASK = "Which tag does this movie relate to? tags: [a, b] description: "


def line(**changes):
    row = {"user_id": "u1", "query": "Alien", "response": "horror", "time": "2026-01-03"}
    return json.dumps({k: v for k, v in (row | changes).items() if v is not ...})


def lines(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def item(number, tag="comedy", **more):
    return {"id": str(number), "tag": tag, "description": f"Film {number}.", "date": f"2020-01-{number + 1:02}"} | more


def official(folder, rows=None, golds=None, task="LaMP_2M", name="questions.json"):
    rows = rows or [{"id": str(u), "input": f"{ASK}New {u}.", "profile": [item(n) for n in range(3)]} for u in range(3)]
    golds = golds if golds is not None else [{"id": r["id"], "output": "action"} for r in rows if "id" in r]
    (folder / name).write_text(json.dumps(rows))
    (folder / name.replace("questions", "outputs")).write_text(json.dumps({"task": task, "golds": golds}))
    return folder / name


def oppu(folder, *users):
    (folder / "users.json").write_text(json.dumps(users))
    return folder / "users.json"


def refused(path, message, **options):
    """The one error of reading ``path``; with ``skip_bad_rows`` the same is passed over and reported once."""
    with pytest.raises(DataError, match=message):
        list(read_users(path, **options))
    bad = []
    users = list(read_users(path, **options, skip_bad_rows=True, bad_rows=bad))
    assert len(bad) == 1, bad
    assert bad[0].file == str(path)
    return users, bad[0]


# --- JSON lines


def test_scattered_lines_are_gathered_by_user_in_time_order(tmp_path):
    path = lines(
        tmp_path / "f.jsonl",
        line(user_id="b", query="late", time="2026-02-01"),
        line(user_id="a", query="only"),
        "",
        line(user_id="b", query="early", time="2025-02-01"),
        line(user_id="b", query="same day, second", time="2026-02-01"),
    )
    assert [(u.user_id, [i.query for i in u.interactions]) for u in read_users(path)] == [
        ("b", ["early", "late", "same day, second"]),
        ("a", ["only"]),
    ]


def test_an_interaction_keeps_all_its_fields(tmp_path):
    path = lines(tmp_path / "f.jsonl", line(user_id=7, response=5, id=9, time=1995, metadata={"title": "T", "n": 1}))
    (user,) = read_users(path)
    (made,) = user.interactions
    assert (made.user_id, made.response, made.id, made.time.year, dict(made.metadata)) == (
        "7",
        "5",
        "9",
        1995,
        {"title": "T", "n": 1},
    )


def test_without_a_time_the_file_order_holds(tmp_path):
    bare = [line(query=str(n), time=...) for n in (2, 3)]
    path = lines(tmp_path / "f.jsonl", line(query="1"), *bare, line(query="4", time="2000-01-01"))
    with pytest.warns(UserWarning, match="as the file has them"):
        assert [i.query for i in next(read_users(path)).interactions] == ["1", "2", "3", "4"]


def test_equal_rows_without_ids_are_told_apart(tmp_path):
    path = lines(tmp_path / "f.jsonl", line(), line(), line())
    ids = [i.id for i in next(read_users(path)).interactions]
    assert len(set(ids)) == 3
    assert ids == [i.id for i in next(read_users(path)).interactions]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(query=...), "line 2, field 'query': got None"),
        (line(query="  "), "field 'query'"),
        (line(response=None), "field 'response'"),
        (line(response=[True]), r"field 'response': got \[True\]"),
        (line(user_id=""), "field 'user_id'"),
        (line(user_id=1.5), "field 'user_id': got 1.5"),
        (line(time="soon"), "field 'time': got 'soon', expected an ISO date"),
        (line(metadata=[1]), "field 'metadata'"),
        (line(id=" "), "field 'id'"),
        (line(query="\ud800"), "half surrogate"),
        (line(timestamp="2026"), "field 'timestamp'.*Did you mean 'time'"),
        (line(colour="red"), r"field 'colour'.*metadata"),
        ('{"user_id": "u1", ', "line 2: .*JSON"),
        ("[]", "line 2: got .*one JSON object a line"),
        (line(id="x") + "\n" + line(id="x"), "line 3, field 'id': got 'x'.*unique within the user"),
    ],
)
def test_bad_lines(tmp_path, bad, message):
    path = lines(tmp_path / "f.jsonl", line(query="good"), bad, line(query="last"))
    users, _ = refused(path, message)
    assert {"good", "last"} <= {i.query for i in users[0].interactions}


def test_a_bad_last_line_is_met_before_the_first_user(tmp_path):
    path = lines(tmp_path / "f.jsonl", line(), "{")
    reader = read_users(path)
    with pytest.raises(DataError):
        next(reader)


def test_responses_are_checked_against_a_named_task(tmp_path):
    path = lines(tmp_path / "f.jsonl", line(response="Action"), line(response="horror"))
    users, bad = refused(path, "field 'response': got 'horror', expected one of: sci-fi", task="lamp-2m")
    assert (users[0].interactions[0].response, bad.line) == ("action", 2)
    assert len(next(read_users(path, task="description -> tag")).interactions) == 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"))),
        max_size=12,
    )
)
def test_no_text_reaches_another_user_and_none_is_lost(tmp_path_factory, given_rows):
    path = tmp_path_factory.mktemp("h") / "f.jsonl"
    kept = [(u, f"{n} {q}".strip()) for n, (u, q) in enumerate(given_rows)]
    path.write_text("\n".join([line(user_id=u, query=q) for u, q in kept] or [line(user_id="z")]))
    found = {u.user_id: [i.query for i in u.interactions] for u in read_users(path)}
    for user_id in {u for u, _ in kept}:
        assert found[user_id] == [q for u, q in kept if u == user_id]
    assert len(found) == (len({u for u, _ in kept}) or 1)


def test_a_user_id_with_space_around_it_is_another_user(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(line(user_id=u) for u in ("ana", "ana\u3000", " ana")))
    assert [u.user_id for u in read_users(path)] == ["ana", "ana\u3000", " ana"]
    path.write_text(line(user_id="\u3000 "))
    with pytest.raises(DataError, match="not empty"):
        next(read_users(path))


# --- LaMP official


def test_an_official_file(tmp_path):
    users = list(read_users(official(tmp_path)))
    assert [u.user_id for u in users] == ["0", "1", "2"]
    assert [(q.id, q.query, q.gold) for q in users[1].questions] == [("1", "New 1.", "action")]
    assert [i.query for i in users[1].interactions] == ["Film 0.", "Film 1.", "Film 2."]
    assert users[0].questions[0].metadata["input"].startswith("Which tag")


def test_the_name_of_the_split_is_kept(tmp_path):
    path = official(tmp_path, name="dev_questions.json")
    assert len(list(read_users(path))) == 3
    (tmp_path / "dev_outputs.json").unlink()
    with pytest.raises(DataError, match=r"dev_outputs\.json.*the golds of dev_questions\.json"):
        list(read_users(path, task="lamp-2m"))


def test_lamp_2_is_told_apart_by_its_profiles(tmp_path):
    assert detect_task(official(tmp_path, task="LaMP_2")) == get_task("lamp-2m")
    news = {"id": "1", "input": "article: A", "profile": [{"id": "1", "text": "A", "title": "T", "category": "crime"}]}
    path = official(tmp_path, [news], [{"id": "1", "output": "crime"}], task="LaMP_2")
    assert detect_task(path) == get_task("lamp-2n")
    assert next(read_users(path)).questions[0].gold == "crime"


def test_a_file_whose_task_cannot_be_told(tmp_path):
    path = put(tmp_path / "questions.json", [{"id": "1", "input": "what?", "profile": []}])
    with pytest.raises(DataError, match="--task lamp-2m"):
        read_users(path)
    with pytest.raises(InputError, match="expected one of lamp-1"):
        read_users(path, task="films")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": ""}, "id '1', field 'input': got ''"),  # as LaMP_2's dev row 110 is
        ({"input": "no instruction"}, "id '1', field 'input'"),
        ({"profile": None}, "id '1', field 'profile'"),
        ({"profile": [item(0), "x"]}, r"id '1', field 'profile\[1\]\.profile'"),
        ({"profile": [item(0), item(1, tag="western")]}, r"id '1', field 'profile\[1\]\.tag': got 'western'"),
        ({"profile": [item(0), item(0)]}, r"field 'profile\[1\]\.id': got '0'.*unique"),
        ({"profile": [item(0), item(1, date="once")]}, r"field 'profile\[1\]\.date': got 'once'"),
        ({"profile": [item(0), item(1, description=" ")]}, r"field 'profile\[1\]\.description'"),
        ({"id": "0"}, "id '0', field 'user_id'.*each user in one row"),
        ({"id": ...}, "id '#2', field 'id'"),
        ({"input": ...}, "id '1', field 'input'"),
    ],
)
def test_bad_official_rows(tmp_path, change, message):
    rows = [{"id": str(u), "input": f"{ASK}New.", "profile": [item(0), item(1)]} for u in range(3)]
    rows[1] = {k: v for k, v in (rows[1] | change).items() if v is not ...}
    path = official(tmp_path, rows, [{"id": str(u), "output": "action"} for u in range(3)])
    users, _ = refused(path, message)
    assert {"0", "2"} <= {u.user_id for u in users}
    assert all(i.query == f"Film {n}." for u in users for n, i in enumerate(u.interactions))


def test_a_row_that_is_no_object_and_a_question_without_gold(tmp_path):
    rows = [{"id": str(u), "input": f"{ASK}New.", "profile": []} for u in range(2)]
    path = official(tmp_path, [rows[0], "text"], [{"id": "0", "output": "action"}])
    refused(path, "id '#2': got 'text'")
    path = official(tmp_path, rows, [{"id": "0", "output": "action"}])
    refused(path, "id '1', field 'id': got '1', expected an id that outputs.json has a gold for")
    path = official(tmp_path, rows, [{"id": "0", "output": "action"}, {"id": "1", "output": "western"}])
    refused(path, "id '1', field 'output': got 'western'")


def test_a_cut_array_is_an_error_even_when_skipping(tmp_path):
    path = official(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut short"):
        list(read_users(path, skip_bad_rows=True, bad_rows=[]))


# --- OPPU style


def test_a_user_in_several_rows_is_an_error_that_names_them_or_joined(tmp_path):
    rows = [{"user_id": u, "profile": [item(n)], "query": []} for n, u in enumerate(["a", "b", "a"])]
    path = oppu(tmp_path, *rows)
    with pytest.raises(DataError, match=r"id 'a', field 'user_id': got 'rows 1 and 3'.*--group"):
        list(read_users(path, task="lamp-2m"))
    joined = list(read_users(path, task="lamp-2m", group=True))
    assert [(u.user_id, [i.query for i in u.interactions]) for u in joined] == [
        ("a", ["Film 0.", "Film 2."]),
        ("b", ["Film 1."]),
    ]


def test_an_oppu_file_has_several_questions_a_user(tmp_path):
    asked = [{"id": n, "input": f"{ASK}New {n}.", "gold": "action", "date": "2021"} for n in range(2)]
    path = oppu(
        tmp_path,
        {"user_id": "a", "profile": [item(2), item(1)], "query": [*asked, {"id": 9, "input": f"{ASK}Open."}]},
        {"user_id": "b", "profile": [], "query": []},
    )
    first, second = read_users(path, task="lamp-2m")
    assert [(q.id, q.gold) for q in first.questions] == [("0", "action"), ("1", "action"), ("9", None)]
    assert first.questions[0].time.year == 2021
    assert [i.query for i in first.interactions] == ["Film 1.", "Film 2."]
    assert (second.interactions, second.questions) == ((), ())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("text", "field 'query'"),
        ([{"id": "1", "input": ""}], r"field 'query\[0\]\.input'"),
        ([{"id": "1", "input": f"{ASK}A", "gold": "western"}], r"field 'query\[0\]\.gold'"),
        ([{"id": "1", "input": f"{ASK}A"}, {"id": "1", "input": f"{ASK}B"}], r"field 'query\[1\]\.id'"),
        ([3], r"id 'a'.*got 3"),
    ],
)
def test_bad_oppu_questions(tmp_path, query, message):
    path = oppu(tmp_path, {"user_id": "a", "profile": [item(1)], "query": query})
    refused(path, message, task="lamp-2m")


# --- every form


def test_limit_and_users(tmp_path):
    path = official(tmp_path)
    assert len(list(read_users(path, limit=2))) == 2
    assert list(read_users(path, limit=0)) == []
    assert [u.user_id for u in read_users(path, users=["2", "1"])] == ["1", "2"]
    assert [u.user_id for u in read_users(path, users="1")] == ["1"]
    with pytest.raises(UnknownUser, match="user '9'"):
        list(read_users(path, users={"1", "9"}))
    with pytest.raises(InputError, match="limit -1"):
        read_users(path, limit=-1)
    mine = lines(tmp_path / "f.jsonl", line(user_id="a"), line(user_id="b"), line(user_id="c", query=""))
    assert [u.user_id for u in read_users(mine, users={"b"})] == ["b"]


def test_the_file_is_opened_at_once():
    with pytest.raises(DataError, match=r"nowhere\.json"):
        read_users("nowhere.json")


def test_histories_are_values(tmp_path):
    (user, *_) = read_users(official(tmp_path))
    assert pickle.loads(pickle.dumps(user)) == user == copy.deepcopy(user)  # noqa: S301
    with pytest.raises(AttributeError):
        user.user_id = "other"
    with pytest.raises(TypeError):
        user.questions[0].metadata["input"] = "other"


@pytest.mark.filterwarnings("ignore:.* is taken as ")
@settings(deadline=None)
@given(st.data())
def test_any_json_is_histories_or_one_of_our_errors(tmp_path_factory, data):
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "comedy", "2020"])
    keys = st.sampled_from(["id", "user_id", "input", "profile", "query", "gold", "tag", "description", "date"])
    tree = st.recursive(leaf, lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t, max_size=4), max_leaves=8)
    # a good row with a few fields replaced by anything, so that every check is reached
    film = st.builds(lambda n, change: item(n) | change, st.integers(0, 2), st.dictionaries(keys, tree, max_size=1))
    asked = st.builds(lambda change: {"id": "a", "input": f"{ASK}x"} | change, st.dictionaries(keys, tree, max_size=1))
    row = st.builds(
        lambda question, films, change: question | {"profile": films} | change,
        asked,
        st.lists(film, max_size=3),
        st.dictionaries(keys, tree | st.lists(asked, max_size=2), max_size=2),
    )
    path = tmp_path_factory.mktemp("fuzz") / "questions.json"
    path.write_text(json.dumps(data.draw(tree | st.lists(row, max_size=3))))
    path.with_name("outputs.json").write_text('{"task": "LaMP_2M", "golds": [{"id": "a", "output": "comedy"}]}')
    skip = data.draw(st.booleans())
    try:
        list(read_users(path, skip_bad_rows=skip, bad_rows=[]))
    except PersonaError as error:
        assert "expected" in str(error)


_MEASURE = """
import resource, sys
from persona_dspy.data.files import read_users
import ijson, persona_dspy.data.citation
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
count = sum(len(user.interactions) for user in read_users(sys.argv[1]))
print(count, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "lines"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    path = tmp_path / ("questions.json" if form == "array" else "f.jsonl")
    text, users, each = "word " * 80, 200, 250
    with path.open("w") as file:
        for user in range(users):
            if form == "array":
                items = [item(n, description=f"{n} {text}", date="2020") for n in range(each)]
                row = json.dumps({"id": str(user), "input": f"{ASK}New.", "profile": items})
                file.write(("," if user else "[") + row)
            else:
                file.writelines(line(user_id=str(user), query=f"{n} {text}") + "\n" for n in range(each))
        file.write("]" if form == "array" else "")
    golds = [{"id": str(user), "output": "action"} for user in range(users)]
    path.with_name("outputs.json").write_text(json.dumps({"task": "LaMP_2M", "golds": golds}))
    size = path.stat().st_size / 2**20
    assert size > 20
    ran = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    count, grown = map(int, ran.stdout.split())
    assert count == users * each
    assert grown < size / 3


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}: set PERSONA_DSPY_DATA")
@pytest.mark.parametrize(
    ("folder", "task", "users", "questions"),
    [
        ("movie_tags", "lamp-2m", 50, 202),
        ("citation", "lamp-1", 50, 495),
        ("news_category", "lamp-2n", 40, 206),
        ("rating", "lamp-3", 60, 599),
    ],
)
def test_real_files(folder, task, users, questions):
    one_each, all_of_them = DATA / folder / "questions.json", DATA / folder / "users.json"
    assert detect_task(one_each) == detect_task(all_of_them) == get_task(task)
    assert [len(u.questions) for u in read_users(one_each)] == [1] * users
    read = list(read_users(all_of_them))
    assert (len(read), sum(len(u.questions) for u in read)) == (users, questions)
    for user in read:
        assert {i.user_id for i in user.interactions} == {user.user_id}
        times = [i.time for i in user.interactions if i.time]
        assert times == sorted(times)
        assert all(q.time is None or q.time >= times[-1] for q in user.questions)


# --- Other forms that people have ------------------------------------------------------------------------------------


def own_rows(n=6, **more):
    return [
        {"user_id": "u1", "query": f"film {i}", "response": "comedy", "time": f"2026-01-{i + 1:02d}", **more}
        for i in range(n)
    ]


def put(path, content, bom=False):
    path.write_text(("\ufeff" if bom else "") + json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", [None, "film -> tag", "lamp-2m"])
@pytest.mark.parametrize("bom", [True, False])
def test_an_array_of_interactions_is_read_as_their_lines_are(task, bom, tmp_path):
    rows = [*own_rows(), *[{**row, "user_id": 7} for row in own_rows(2)]]
    users = list(read_users(put(tmp_path / "a.json", rows, bom), task=task))
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert users == list(read_users(lines, task=task))
    assert [(u.user_id, len(u.interactions)) for u in users] == [("u1", 6), ("7", 2)]
    with pytest.raises(DataError, match=r"id '#2'.*'query'"):
        list(read_users(put(tmp_path / "b.json", [own_rows(1)[0], {"user_id": "u1", "response": "x"}])))
    bad = []
    assert len(list(read_users(tmp_path / "b.json", skip_bad_rows=True, bad_rows=bad))) == len(bad) == 1


@pytest.mark.parametrize(
    ("time", "read"),
    [
        (1767225600, "2026-01-01"), (1767225600.5, "2026-01-01"), ("1767225600", "2026-01-01"),
        (1767225600000, "2026-01-01"), ("NaT", None), ("nan", None), ("NA", None), ("<NA>", None), (None, None),
        ("", None),
        (1995, "1995-01-01"), ("20260131", "2026-01-31"),
    ],
)  # fmt: skip
def test_times_as_tables_write_them(time, read, tmp_path):
    (user,) = read_users(put(tmp_path / "a.json", own_rows(1, time=time)))
    found = user.interactions[0].time
    assert (found.date().isoformat() if found else None) == read


def test_titles_numbers_and_booleans(tmp_path):
    rows = [
        {"user_id": 1.0, "query": "x", "response": 4.0, "title": "Heat", "id": 10.0},
        {"user_id": 1, "query": "y", "response": 4, "title": None, "id": 11},
        {"user_id": "1", "query": "z", "response": True},
    ]
    (user,) = read_users(put(tmp_path / "a.json", rows))
    assert [i.response for i in user.interactions] == ["4", "4", "true"]
    assert user.user_id == "1" and [i.id for i in user.interactions][:2] == ["10", "11"]
    assert dict(user.interactions[0].metadata) == {"title": "Heat"}


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("missing", [3, 0, 9])
def test_one_missing_time_in_a_dated_log_is_placed_by_its_neighbours_and_said(newest_first, missing, tmp_path):
    rows = own_rows(10)
    rows[missing].pop("time")
    path = put(tmp_path / "a.json", list(reversed(rows)) if newest_first else rows)
    with pytest.warns(UserWarning, match="'u1': 1 of 10 interactions have no time"):
        (user,) = read_users(path)
    found = [i.query for i in user.interactions]
    assert [q for q in found if q != f"film {missing}"] == [f"film {n}" for n in range(10) if n != missing]
    assert abs(found.index(f"film {missing}") - missing) <= 1


INPUTS = {
    "lamp-2m": ("Which tag? tags: [comedy] description: A crew", {"tag": "comedy", "description": "A film"}),
    "lamp-3": ("What is the score of the following review? review: fine", {"score": "4", "text": "good"}),
    "lamp-4": ("Generate a headline for the following article: It rained", {"title": "Rain", "text": "It rained"}),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("named", [True, False])
def test_a_test_split_without_golds_is_read(name, named, tmp_path):
    asked, item = INPUTS[name]
    row = {"id": "200", "input": asked, "profile": [{"id": "1", **item}]}
    path = put(tmp_path / "test_questions.json", [row])
    (user,) = read_users(path, task=name if named else None)
    assert len(user.interactions) == 1 and [q.gold for q in user.questions] == [None]
    assert detect_task(path).name == name
    gold = item.get("tag") or item.get("score") or item["title"]
    (merged,) = read_users(put(tmp_path / "merged.json", [{**row, "output": gold}]), task=name)
    assert [q.gold for q in merged.questions] == [gold]


def test_users_of_an_opposing_file_without_questions_or_golds_are_read(tmp_path):
    profile = [{"id": "1", "tag": "comedy", "description": "A film"}]
    rows = [
        {"user_id": "a", "profile": profile},
        {"user_id": "b", "profile": [], "query": [{"id": "5", "input": INPUTS["lamp-2m"][0]}]},
    ]
    a, b = read_users(put(tmp_path / "users.json", rows), task="lamp-2m")
    assert (len(a.interactions), a.questions) == (1, ()) and (b.interactions, b.questions[0].gold) == ((), None)


def test_avocado_files_say_what_is_missing(tmp_path):
    row = {"id": "6", "input": "Generate a subject for the following email: x", "profile": [{"id": "1", "title": "s"}]}
    with pytest.raises(DataError, match="Avocado corpus"):
        list(read_users(put(tmp_path / "test.json", [row]), task="lamp-6"))

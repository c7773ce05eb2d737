"""The same suite on SQLite and on a real PostgreSQL: nothing lost, nothing mixed up, nothing left behind."""

from __future__ import annotations

import gc
import json
import sqlite3
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import persona_dspy.store.store as store_module
from persona_dspy.core.interactions import Interaction, in_time_order
from persona_dspy.core.signals import Signal
from persona_dspy.errors import InputError, StoreError, UnknownUser
from persona_dspy.memory.dense import Dense, Hybrid
from persona_dspy.memory.retrieval import BM25
from persona_dspy.store.store import Store
from persona_dspy.store.tables import MIGRATIONS, meta
from tests.postgres_server import new_database, running_server

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
ON_BOTH = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = count()
START = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = (
    "persona_current",
    "persona_versions",
    "persona_profiles",
    "persona_drafts",
    "persona_vectors",
    "persona_episodes",
    "persona_users",
)


@pytest.fixture(scope="session")
def server():
    with running_server() as url:
        yield url


@pytest.fixture(params=BOTH)
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/personas.db"
    return new_database(request.getfixturevalue("server"), f"t{next(NUMBERS)}")


@pytest.fixture
def store(url):
    with Store.open(url, timeout=5) as opened:
        yield opened


def one(number: int, user: str = "u1", query: str = "", *, day: float | None = None) -> Interaction:
    time = None if day is None else START + timedelta(days=day)
    return Interaction(user_id=user, query=query or f"query {number}", response="r", time=time, id=f"i{number}")


def persona(user: str, version: int, parent: int | None = None, text: str = "Prefers tea.") -> dict:
    return {"schema": "persona-dspy/persona/1", "user_id": user, "version": version, "parent": parent, "text": text}


def ids(items) -> list[str]:
    return [item.id for item in items]


def everything(store: Store) -> list[tuple]:
    """Every row of every table that says anything."""
    with store._database.reading() as connection:
        rows = [tuple(row) for table in TABLES for row in connection.execute(sa.text(f"SELECT * FROM {table}"))]
    texts = [[value for value in row if isinstance(value, str)] for row in rows]
    return [row for row, text in zip(rows, texts, strict=True) if not text or any(t.strip() for t in text)]


# -- episodes ----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), min_size=1, max_size=12).filter(lambda t: t.strip())  # NUL and lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
CONTENTS = st.lists(
    st.builds(
        dict,
        query=TEXT,
        response=TEXT,
        time=st.none() | st.datetimes(timezones=st.just(UTC)),
        metadata=st.dictionaries(st.text(max_size=4), JSON, max_size=2),
    ),
    max_size=4,
)


@given(CONTENTS)
@ON_BOTH
def test_episodes_come_back_as_they_were(store, contents):
    user = f"user {next(NUMBERS)}"
    given_ = [Interaction(user_id=user, id=f"i{n}", **content) for n, content in enumerate(contents)]
    assert store.add_episodes(user, given_) == len(given_)
    if given_:
        assert store.episodes(user) == in_time_order(given_)
        assert store.add_episodes(user, given_) == 0
        assert list(store.memory(user).interactions) == in_time_order(given_)


def test_same_again_is_nothing_other_content_is_refused(store):
    assert store.add_episodes("u1", [one(1), one(2), one(1)]) == 2
    assert store.add_episodes("u1", [one(2), one(3)]) == 1
    with pytest.raises(InputError, match="interaction id 'i2' of 'u1' is taken by other content"):
        store.add_episodes("u1", [one(4), one(2, query="changed")])
    with pytest.raises(InputError, match="taken by other content"):
        store.add_episodes("u1", [one(5), one(5, query="changed")])
    with pytest.raises(InputError, match="interaction 'i7' is of 'u2': expected 'u1'"):
        store.add_episodes("u1", [one(6), one(7, "u2")])
    with pytest.raises(InputError, match=r"interaction 'i8', metadata \['when'\]: expected JSON-safe"):
        store.add_episodes(
            "u1", [one(6), Interaction(user_id="u1", query="q", response="r", id="i8", metadata={"when": START})]
        )
    assert ids(store.episodes("u1")) == ["i1", "i2", "i3"]
    assert store.add_episodes("u1", []) == 0


def test_time_order_and_last(store):
    store.add_episodes("u1", [one(1, day=5), one(2, day=1)])
    store.add_episodes("u1", [one(3, day=3)])
    assert ids(store.episodes("u1")) == ["i2", "i3", "i1"]
    assert ids(store.episodes("u1", last=2)) == ["i3", "i1"]
    assert store.episodes("u1", last=0) == [] and len(store.episodes("u1", last=9)) == 3


def test_more_than_a_statement_holds(store):
    many = [one(n) for n in range(1700)]
    assert store.add_episodes("u1", many) == 1700
    assert store.add_episodes("u1", [*many, one(1700)]) == 1
    assert len(store.episodes("u1")) == 1701


# -- users -------------------------------------------------------------------------------------------------------

AWKWARD = [
    *("u", "U", "u ", " u", "ü", unicodedata.normalize("NFD", "ü"), "ß", "ss", "İ", "i̇", "ı", "I"),
    *("../../x", "a/b", "a\\b", "C:\\x", "'; DROP TABLE persona_users; --", '"', "%", "_", "u%", "NULL", "0", "00"),
    *(
        "x" * 300,
        "y" * 1199,
        "😀" * 300,
        "\u200b",
        "\u202eabc",
        "a\nb",
        "a\tb",
        "\x7f",
        "\ufeffu",
        "$1",
        ":a",
        "{u}",
        "?",
    ),
]


def test_awkward_user_ids_never_meet(store):
    for number, user in enumerate(AWKWARD):
        store.add_episodes(user, [one(number, user)])
        store.put_persona(user, persona(user, 1, text=f"number {number}"))
    assert sorted(store.users()) == sorted(AWKWARD)
    for number, user in enumerate(AWKWARD):
        assert ids(store.episodes(user)) == ids(store.memory(user).interactions) == [f"i{number}"]
        assert store.current(user).document["text"] == f"number {number}"
    store.forget(AWKWARD[0])
    assert sorted(store.users()) == sorted(AWKWARD[1:])


@pytest.mark.parametrize("user", ["", "  ", "a\0b", "\ud800", "z" * 1201, "😀" * 301])
def test_ids_no_database_could_keep_are_refused(store, user):
    for call in (
        lambda: store.add_episodes(user, []),
        lambda: store.put_persona(user, persona(user, 1)),
        lambda: store.forget(user),
    ):
        with pytest.raises(InputError, match=r"^user_id .*: expected"):
            call()
    assert list(store.users()) == []


def test_unknown_users_are_told(store):
    store.add_episodes("u1", [one(1)])
    for call in (store.episodes, store.memory, store.current, store.versions, store.rollback):
        with pytest.raises(UnknownUser, match="user 'U1': not in the store"):
            call("U1")
    with pytest.raises(UnknownUser):
        store.version("U1", 1)
    assert store.current("u1") is None and store.versions("u1") == []


def test_users_are_read_by_pages(store, monkeypatch):
    monkeypatch.setattr(store_module, "_PAGE", 3)
    names = [f"u{n}" for n in range(9)]  # the last page is full
    for name in names:
        store.add_episodes(name, [one(1, name)])
    stream = store.users()
    first = [next(stream) for _ in range(4)]
    store.forget(gone := next(n for n in names if n not in first))  # meanwhile
    left = list(stream)
    assert sorted([*first, *left]) in (names, sorted({*names} - {gone}))
    assert sorted(store.users()) == sorted({*names} - {gone})


# -- memory ------------------------------------------------------------------------------------------------------


def test_memory_is_one_handle_that_follows_the_store(store, url):
    store.add_episodes("u1", [one(1, query="about cats", day=1)])
    memory = store.memory("u1")
    assert store.memory("u1") is memory and memory.user_id == "u1"
    store.add_episodes("u1", [one(2, query="about dogs", day=2), one(3, query="old cats", day=0)])
    assert ids(memory.interactions) == ["i3", "i1", "i2"]
    assert ids(memory.recall("dogs", 1)) == ["i2"]
    with Store.open(url) as elsewhere:
        elsewhere.add_episodes("u1", [one(4, query="about sharks", day=3)])
    assert ids(store.memory("u1").recall("sharks", 1)) == ["i4"]
    assert store.memory("u1") is memory


def test_configurations_have_their_own_memories(store):
    store.add_episodes("u1", [one(1), one(2)])
    plain, sharp = store.memory("u1"), store.memory("u1", retriever=BM25(k1=0.5))
    assert plain is not sharp and store.memory("u1", retriever=BM25(k1=0.5)) is sharp
    store.add_episodes("u1", [one(3)])
    assert len(plain) == len(sharp) == 3


@pytest.mark.slow
def test_indexes_are_bounded_but_a_held_handle_stays(url):
    with Store.open(url, cached_users=2) as store:
        for n in range(6):
            store.add_episodes(f"u{n}", [one(1, f"u{n}")])
        held = store.memory("u0")
        for n in range(1, 6):
            store.memory(f"u{n}")
        gc.collect()
        assert [len(store._handles.of(f"u{n}")) for n in range(6)] == [1, 0, 0, 0, 1, 1]
        store.add_episodes("u0", [one(2, "u0")])
        assert len(held) == 2 and store.memory("u0") is held


@pytest.mark.slow
def test_handles_of_users_long_gone_take_no_room(url):
    with Store.open(url, cached_users=2) as store:
        store.add_episodes("u0", [one(1, "u0")])
        store.memory("u0")
        handles = store._handles
        for n in range(3000):
            handles.put(f"v{n}", None, type(store.memory("u0"))(user_id=f"v{n}"))
        gc.collect()
        assert len(handles._live) <= 1030


def test_forgotten_memories_are_empty_at_once(store, url):
    store.add_episodes("u1", [one(1, query="secret")])
    memory = store.memory("u1")
    assert memory.recall("secret", 1)
    with Store.open(url) as elsewhere:
        other = elsewhere.memory("u1")
        store.forget("u1")
        assert len(memory) == 0 and memory.recall("secret", 1) == []
        with pytest.raises(UnknownUser):
            elsewhere.memory("u1")
        assert len(other) == 0
        store.add_episodes("u1", [one(9, query="back again")])
        assert ids(memory.interactions) == ids(elsewhere.memory("u1").interactions) == ["i9"]


def test_a_user_forgotten_and_back_elsewhere_is_read_anew(store, url):
    store.add_episodes("u1", [one(1), one(2)])
    memory = store.memory("u1")
    with Store.open(url) as elsewhere:
        elsewhere.forget("u1")
        elsewhere.add_episodes("u1", [one(3), one(4)])
    assert ids(store.memory("u1").interactions) == ["i3", "i4"] and store.memory("u1") is memory


# -- vectors -----------------------------------------------------------------------------------------------------


def counting(asked: list[str]):
    def encoder(texts):
        asked.extend(texts)
        return np.array([[t.count("a") + 1, t.count("b")] for t in texts], dtype=np.float32)

    return encoder


def test_vectors_are_made_once_and_kept(store, url):
    asked: list[str] = []
    dense = Dense(encoder=counting(asked), name="v1", batch_size=2)
    store.add_episodes("u1", [one(n, query=q) for n, q in enumerate(["aaa", "bbb", "ab"])])
    store.add_episodes("u2", [one(1, "u2", query="bbb")])
    seen: list[tuple[int, int]] = []
    assert store.embed("u1", dense, progress=lambda done, total: seen.append((done, total))) == 3
    assert seen == [(2, 3), (3, 3)] and len(asked) == 3
    assert store.embed("u1", dense) == 0
    with Store.open(url) as again:
        for retriever in (dense, Hybrid(parts=(BM25(), dense))):
            asked.clear()
            assert ids(again.memory("u1", retriever=retriever).recall("bb", 1)) == ["i1"]
            assert asked == ["bb"]
    assert store.vectors("u2", "v1") == {} and store.vectors("u1", "v2") == {}
    np.testing.assert_allclose(store.vectors("u1", "v1")["i0"], [1, 0])


def test_another_encoder_is_embedded_anew_beside_the_old_one(store):
    store.add_episodes("u1", [one(n) for n in range(3)])
    old, new = Dense(encoder=counting([]), name="v1"), Dense(encoder=lambda t: np.ones((len(t), 5)), name="v2")
    store.memory("u1", retriever=old)
    assert store.embed("u1", new) == 3
    assert store.vectors("u1", "v2")["i0"].shape == (5,) and store.vectors("u1", "v1")["i0"].shape == (2,)
    assert len(store.vectors("u1", "v2")) == 3


def test_embedding_goes_on_where_it_stopped(store):
    store.add_episodes("u1", [one(n) for n in range(5)])
    calls = count()

    def breaks(texts):
        if next(calls) == 1:
            raise ConnectionError("encoder away")
        return np.ones((len(texts), 2))

    dense = Dense(encoder=breaks, name="v", batch_size=2)
    with pytest.raises(ConnectionError):
        store.embed("u1", dense)
    assert store.embed("u1", dense) == 3


def test_vectors_given_by_hand(store):
    store.add_episodes("u1", [one(1)])
    vector = np.array([1.5, -2], dtype=np.float32)
    assert store.put_vectors("u1", "mine", {"i1": vector * 2, "unknown": vector}) == 1
    assert store.put_vectors("u1", "mine", {"i1": vector}) == 1
    np.testing.assert_array_equal(store.vectors("u1", "mine")["i1"], vector)
    assert store.put_vectors("nobody", "mine", {"i1": vector}) == 0 and list(store.users()) == ["u1"]


# -- personas ----------------------------------------------------------------------------------------------------


def test_versions_are_a_chain_with_a_pointer(store):
    first = store.put_persona("u1", persona("u1", 1), {"steps": [1, 2]})
    assert (first.version, first.parent, first.current, first.alignment) == (1, None, True, {"steps": [1, 2]})
    text = json.dumps(persona("u1", 2, 1, "Ünï\u2028code"), indent=3)
    second = store.put_persona("u1", text)
    assert second.text == text and second.alignment is None and store.current("u1") == second
    assert [(v.version, v.current) for v in store.versions("u1")] == [(1, False), (2, True)]
    assert store.rollback("u1").version == 1 and store.current("u1").version == 1
    assert store.rollback("u1", 2).current and store.version("u1", 1).document == persona("u1", 1)
    branch = store.put_persona("u1", persona("u1", 3, 1))
    assert branch.parent == 1 and [v.version for v in store.versions("u1")] == [1, 2, 3]


def test_versions_are_immutable(store):
    store.put_persona("u1", persona("u1", 1), {"run": 1})
    store.put_persona("u1", persona("u1", 2, 1))
    again = store.put_persona("u1", persona("u1", 1), {"run": 2})
    assert again.current and again.alignment == {"run": 1}
    with pytest.raises(InputError, match=r"version 2 is stored with other content.*give the new one version 3"):
        store.put_persona("u1", persona("u1", 2, 1, "Prefers coffee."))
    assert store.version("u1", 2).document["text"] == "Prefers tea." and store.current("u1").version == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object, got list"),
        ({"version": 1, "user_id": "u2"}, "persona says user_id 'u2': expected 'u1'"),
        ({"version": "1"}, "version '1'"),
        ({"version": True}, "version True"),
        ({"version": -1}, "version -1"),
        ({"version": 2**31}, "expected a version of 0 or more"),
        ({"version": 2, "parent": 2}, "another one or null as parent"),
        ({"version": 2, "parent": "1"}, "parent '1'"),
        ({"version": 2, "x": {1, 2}}, "expected JSON-safe values"),
    ],
)
def test_documents_that_are_refused(store, document, message):
    with pytest.raises(InputError, match=message):
        store.put_persona("u1", document)
    assert list(store.users()) == []


def test_rollback_says_what_there_is(store):
    store.put_persona("u1", persona("u1", 4, 3))
    with pytest.raises(InputError, match=r"rollback of 'u1' from version 4 to 3: expected one of \[4\]"):
        store.rollback("u1")
    with pytest.raises(InputError, match=r"to 9: expected one of \[4\]"):
        store.rollback("u1", 9)
    with pytest.raises(InputError, match=r"version 5 of 'u1': expected one of \[4\]"):
        store.version("u1", 5)
    store.add_episodes("u2", [one(1, "u2")])
    with pytest.raises(InputError, match=r"from no version to None: expected one of \[\]"):
        store.rollback("u2")


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "put", "rollback", "forget"]), st.sampled_from("ab"), st.integers(0, 4)),
    max_size=14,
)


@pytest.mark.slow
@given(OPERATIONS)
@ON_BOTH
def test_any_sequence_behaves_as_a_dictionary_would(store, operations):
    run = next(NUMBERS)
    episodes: dict[str, dict[str, Interaction]] = {}
    chains: dict[str, dict[int, dict]] = {}
    pointers: dict[str, int] = {}
    for what, letter, number in operations:
        user = f"{letter}{run}"
        if what == "add":
            item = one(number, user)
            assert store.add_episodes(user, [item]) == (item.id not in episodes.get(user, {}))
            episodes.setdefault(user, {})[item.id] = item
        elif what == "put":
            document = persona(user, number, number - 1 if number else None)
            store.put_persona(user, document)
            chains.setdefault(user, {})[number] = document
            pointers[user] = number
        elif what == "rollback" and user in pointers:
            target = chains[user][pointers[user]]["parent"]
            if target in chains[user]:
                assert store.rollback(user).version == target
                pointers[user] = target
            else:
                with pytest.raises(InputError):
                    store.rollback(user)
        elif what == "forget":
            gone = store.forget(user).removed
            assert gone["persona_episodes"] == len(episodes.pop(user, {}))
            assert gone["persona_versions"] == len(chains.pop(user, {}))
            pointers.pop(user, None)
    for letter in "ab":
        user = f"{letter}{run}"
        if user not in episodes and user not in chains:
            with pytest.raises(UnknownUser):
                store.current(user)
            continue
        assert store.episodes(user) == list(episodes.get(user, {}).values())
        assert {v.version: v.document for v in store.versions(user)} == chains.get(user, {})
        found = store.current(user)
        assert (found.version if found else None) == pointers.get(user)


# -- forgetting --------------------------------------------------------------------------------------------------


def test_forget_removes_and_reports(store, tmp_path):
    for user in ("u1", "u2"):
        store.add_episodes(user, [one(n, user, query=f"only-of-{user} " * 30) for n in range(40)])
        store.put_persona(user, persona(user, 1, text=f"only-of-{user}"), {"note": f"only-of-{user}"})
        store.put_persona(user, persona(user, 2, 1))
        store.put_profile(user, {"user_id": user, "lines": [f"only-of-{user}"]})
        store.embed(user, Dense(encoder=counting([]), name="v"))
    with store._database.reading() as connection:
        uid = store._database.uid(connection, "u1")
    kept = [row for row in everything(store) if uid not in row]
    report = store.forget("u1")
    assert report.removed == {
        "persona_current": 1,
        "persona_versions": 2,
        "persona_profiles": 1,
        "persona_drafts": 0,
        "persona_vectors": 40,
        "persona_episodes": 40,
        "persona_users": 1,
    }
    assert report.to_dict()["removed"]["persona_vectors"] == 40 and json.dumps(report.to_dict())
    rows = everything(store)
    assert rows == kept and not any("only-of-u1" in str(row) for row in rows)
    assert report.scrubbed == store._database.sqlite
    assert set(store.forget("u1").removed.values()) == {0}
    assert len(store.episodes("u2")) == 40 and len(store.versions("u2")) == 2


@pytest.mark.slow
def test_no_byte_of_a_forgotten_user_stays_in_the_files(tmp_path):
    """Rows of many users, interleaved and of many sizes, so that pages split; then one user after another goes.

    With clustered keys and secure_delete alone this fails: splits leave copies in unused parts of pages.
    """
    rng = np.random.default_rng(7)
    names = ["secretive", "a", "zz", *(f"user-{n:02}" for n in range(20))]

    def held() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    with Store.open(tmp_path / "personas.db") as store:
        for round_ in range(150):
            for user in ("secretive", "a", "zz", names[3 + round_ % 20]):
                size = int(rng.choice([1, 3, 40, 400]))
                about, key = f"word-of-{user} " * size, f"id-of-{user}-{round_}"
                store.add_episodes(user, [Interaction(user_id=user, query=about, response="ünï", id=key)])
                if round_ % 10 == 0:
                    store.put_persona(user, persona(user, round_, None, about), {"note": about})
                    store.put_vectors(user, f"encoder-of-{user}", {key: np.full(500, 3.25)})
                    store.put_profile(user, {"user_id": user, "lines": [about], "covers": round_})
                signal = Signal(draft=about, trace=key + "-t", comment=["", about][round_ % 2])
                draft = Interaction(user_id=user, query=about, id=key + "-t", signal=signal)
                store.put_drafts(user, [draft], most=4)
                if round_ < 2:
                    store.feedback(user, replace(draft, id=f"id-of-{user}-t"))
            if round_ % 50 == 25:
                gone = names[3 + round_ % 20]
                assert store.forget(gone).scrubbed and gone.encode() not in held()
        store.put_vectors("secretive", "encoder-of-secretive", {"id-of-secretive-0": np.full(500, 1.0)})
        assert b"word-of-secretive" in held() and b"id-of-secretive" in held()
        report = store.forget("secretive")
        assert report.scrubbed and dict(report.removed) == {
            "persona_current": 1,
            "persona_versions": 15,
            "persona_profiles": 1,
            "persona_drafts": 4,
            "persona_vectors": 15,
            "persona_episodes": 151,
            "persona_users": 1,
        }
        assert b"secretive" not in held() and b"word-of-zz" in held()
        for user in list(store.users()):
            assert len(store.episodes(user)) and all(user in i.query for i in store.episodes(user))
            store.forget(user)
        assert not any(word in held() for word in (b"word-of", b"id-of", b"user-", b"encoder-of", b"\x00\x50\x40" * 3))
        assert list(store.users()) == []


def test_profiles_last_and_the_latest_counts(store, url):
    assert store.profile("u1") is None
    store.put_profile("u1", {"lines": []})  # of nobody: forgotten meanwhile
    assert store.profile("u1") is None and list(store.users()) == []
    for user in ("u1", "u2"):
        store.add_episodes(user, [one(1, user)])
        for covers in range(3):
            store.put_profile(user, {"user_id": user, "covers": covers, "lines": ["ünï 🦊 \0"] * (3 - covers)})
    with Store.open(url) as again:
        assert again.profile("u1") == {"user_id": "u1", "covers": 2, "lines": ["ünï 🦊 \0"]}
        assert again.forget("u1").removed["persona_profiles"] == 1
    assert store.profile("u1") is None and store.profile("u2")["covers"] == 2
    store.add_episodes("u1", [one(1)])
    assert store.profile("u1") is None, "back, and known anew"
    with pytest.raises(InputError, match=r"profile of 'u1': expected JSON-safe values"):
        store.put_profile("u1", {"lines": {1, 2}})


def places_of(store, user):
    """Pieces that a user's episodes lie in, in the file."""
    with store._database.reading() as connection:
        uid = store._database.uid(connection, user)
        query = sa.text("SELECT rowid FROM persona_episodes WHERE uid = :uid ORDER BY seq")
        places = connection.execute(query, {"uid": uid}).scalars().all()
    return 1 + sum(b != a + 1 for a, b in pairwise(places))


def test_episodes_that_came_one_by_one_are_brought_together(tmp_path):
    """Else a load reads a page for each episode. Where they were, nothing of them stays."""
    with Store.open(tmp_path / "personas.db") as store:
        follower = store.memory("slow") if store.add_episodes("slow", [one(0, "slow", "canary 0")]) else None
        for number in range(1, 300):
            store.add_episodes("slow", [one(number, "slow", f"canary {number}")])
            store.add_episodes("other", [one(number, "other")])
        store.add_episodes("bulk", [one(number, "bulk") for number in range(300)])
        assert places_of(store, "slow") <= 1 + 1 + 300 % 32 and places_of(store, "bulk") == 1
        assert places_of(store, "other") <= 1 + 1 + 299 % 32
        expected = [f"i{number}" for number in range(300)]
        assert ids(store.episodes("slow")) == expected == ids(follower.interactions)
        assert store.add_episodes("slow", [one(number, "slow", f"canary {number}") for number in range(300)]) == 0
        store.add_episodes("slow", [one(300, "slow", "canary 300")])
        assert ids(store.episodes("slow"))[-1] == "i300"
        with store._database.reading() as connection:  # what is left where they were says nothing and is nobody's
            left = sa.text("SELECT trim(id) || trim(body) FROM persona_episodes WHERE uid < 0")
            assert set(connection.execute(left).scalars()) == {""}
        assert store.forget("slow").removed["persona_episodes"] == 301
        assert b"canary" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert len(store.episodes("other")) == 299


def test_compacting_puts_each_users_episodes_side_by_side(tmp_path):
    with Store.open(tmp_path / "personas.db") as store:
        for number in range(50):
            for user in ("a", "b"):
                store.add_episodes(user, [one(number, user)])
        assert places_of(store, "a") == 1 + 50 % 32
        kept = everything(store)
        store.compact()
        assert places_of(store, "a") == places_of(store, "b") == 1
        assert sorted(map(str, everything(store))) == sorted(map(str, kept))
        assert ids(store.episodes("b")) == [f"i{number}" for number in range(50)]


def test_compacting_gives_the_room_back(store, tmp_path):
    for user in ("u1", "u2"):
        store.add_episodes(user, [one(n, user, query=f"word of {user} " * 50) for n in range(300)])
        store.put_persona(user, persona(user, 1))
        store.embed(user, Dense(encoder=counting([]), name="v"))
    before = sum(path.stat().st_size for path in tmp_path.iterdir())
    store.forget("u1")
    kept = everything(store)
    store.compact()
    assert sorted(map(str, everything(store))) == sorted(map(str, kept))
    with store._database.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM persona_episodes")) == 300
    store.add_episodes("u1", [one(1)])
    assert len(store.episodes("u2")) == 300 and len(store.episodes("u1")) == 1
    if store._database.sqlite:
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 0.7 * before
        assert store.forget("u1").scrubbed


def test_a_compaction_that_was_cut_off_is_reported(tmp_path):
    """Between the removal of rows and VACUUM, rows of living users have moved: nothing counts as scrubbed."""
    with Store.open(tmp_path / "p.db") as store:
        store.add_episodes("u1", [one(1)])
        with store._database.writing() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 1")
        assert not store.forget("u1").scrubbed
        store.compact()
        assert store.forget("u1").scrubbed


def test_a_reader_that_holds_the_log_up_is_reported(tmp_path):
    with Store.open(tmp_path / "personas.db", timeout=0.2) as store:
        store.add_episodes("u1", [one(1)])
        reader = sqlite3.connect(tmp_path / "personas.db", isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM persona_episodes").fetchone() == (1,)
        assert not store.forget("u1").scrubbed
        again = store.forget("u1")  # nothing is left to remove, but the log holds the text
        assert (again.counts, "is still in its files" in again.note) == ({}, True)
        reader.execute("COMMIT")
        reader.close()
        assert store.forget("u1").scrubbed


# -- opening, upgrading, failing ---------------------------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE persona_schema (version INTEGER NOT NULL PRIMARY KEY);
CREATE TABLE persona_users (uid BIGINT NOT NULL, hash {bytes} NOT NULL, user_id TEXT NOT NULL);
CREATE UNIQUE INDEX persona_users_uid ON persona_users (uid);
CREATE UNIQUE INDEX persona_users_hash ON persona_users (hash);
CREATE TABLE persona_episodes (uid BIGINT NOT NULL, seq BIGINT NOT NULL, hash {bytes} NOT NULL, id TEXT NOT NULL,
  body TEXT NOT NULL);
CREATE UNIQUE INDEX persona_episodes_seq ON persona_episodes (uid, seq);
CREATE UNIQUE INDEX persona_episodes_id ON persona_episodes (uid, hash);
CREATE TABLE persona_versions (uid BIGINT NOT NULL, version BIGINT NOT NULL, parent BIGINT, created TEXT NOT NULL,
  document TEXT NOT NULL, alignment TEXT);
CREATE UNIQUE INDEX persona_versions_version ON persona_versions (uid, version);
CREATE TABLE persona_current (uid BIGINT NOT NULL PRIMARY KEY, version BIGINT NOT NULL);
INSERT INTO persona_schema VALUES (1);
INSERT INTO persona_users VALUES (5000000000000000000, {u1}, 'u1');
INSERT INTO persona_episodes VALUES (5000000000000000000, 0, {a}, 'a',
  '{{"query":"q","response":"r","time":"2026-01-03T00:00:00+00:00"}}');
INSERT INTO persona_versions VALUES (5000000000000000000, 1, NULL, '2026-01-04T00:00:00+00:00',
  '{{"version":1,"text":"tea"}}', NULL);
INSERT INTO persona_current VALUES (5000000000000000000, 1);
"""  # frozen: what schema 1 was when it was released


def test_schema_1_is_upgraded_and_nothing_lost(url):
    sqlite = url.startswith("sqlite")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        as_hex = "X'{}'" if sqlite else "decode('{}', 'hex')"
        u1, a = (as_hex.format(blake2b(text, digest_size=16).hexdigest()) for text in (b"u1", b"a"))
        for statement in SCHEMA_1.format(bytes="BLOB" if sqlite else "BYTEA", u1=u1, a=a).split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    with Store.open(url) as store:
        assert store.episodes("u1")[0].time == datetime(2026, 1, 3, tzinfo=UTC)
        assert store.current("u1").document == {"version": 1, "text": "tea"}
        same = Interaction(user_id="u1", query="q", response="r", time="2026-01-03", id="a")
        assert store.add_episodes("u1", [same, one(2)]) == 1
        assert store.embed("u1", Dense(encoder=counting([]), name="v")) == 2
        store.put_profile("u1", {"covers": 2})
        assert store.profile("u1") == {"covers": 2}
        with store._database.reading() as connection:
            assert connection.execute(sa.text("SELECT version FROM persona_schema ORDER BY 1")).scalars().all() == [
                *range(1, len(MIGRATIONS) + 1)
            ]


def test_tables_are_what_the_migrations_made(store):
    with store._database.reading() as connection:
        inspector = sa.inspect(connection)
        for table in meta.tables.values():
            found = {c["name"]: bool(c["nullable"]) for c in inspector.get_columns(table.name)}
            assert found == {c.name: bool(c.nullable) for c in table.columns}
            types = {c["name"]: c["type"] for c in inspector.get_columns(table.name)}
            for column in table.columns:
                for kind in (sa.Integer, sa.Text, sa.LargeBinary):
                    assert isinstance(types[column.name], kind) == isinstance(column.type, kind)


def test_a_newer_schema_is_refused(url):
    with Store.open(url) as store, store._database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO persona_schema VALUES (99)")
    with pytest.raises(StoreError, match=r"has schema 99: expected .* pip install --upgrade persona-dspy"):
        Store.open(url)


def test_many_open_a_new_store_at_once(url):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store.open(url), range(8)))
    for number, opened in enumerate(stores):
        opened.add_episodes("u1", [one(number)])
    assert len(stores[0].episodes("u1")) == 8
    for opened in stores:
        opened.close()


def test_reopening_finds_everything(url):
    with Store.open(url) as store:
        store.add_episodes("u1", [one(1)])
        store.put_persona("u1", persona("u1", 1))
        before = everything(store)
    with Store.open(url) as store:
        assert everything(store) == before


def test_threads_lose_nothing(store):
    def write(number: int) -> None:
        store.add_episodes("shared", [one(number, "shared"), one(10_000, "shared")])
        store.add_episodes(f"u{number % 5}", [one(number, f"u{number % 5}")])
        assert store.memory("shared").position(f"i{number}") is not None
        store.put_persona("shared", persona("shared", number))

    memory_before = None
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(60)))
    memory_before = store.memory("shared")
    assert sorted(ids(store.episodes("shared"))) == sorted(ids(memory_before.interactions))
    assert len(memory_before) == 61 and len(store.versions("shared")) == 60
    assert sorted(len(store.episodes(f"u{n}")) for n in range(5)) == [12] * 5


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "expected 'sqlite:///personas.db'"),
        ("mysql://u:topsecret@h/db", "expected 'sqlite"),
        ("nonsense://u:topsecret@h/db", "expected 'sqlite"),
        ("sqlite://", "in memory would lose"),
        ("sqlite:///:memory:", "in memory would lose"),
        (":memory:", "in memory would lose"),
    ],
)
def test_urls_that_are_refused(url, message):
    with pytest.raises(InputError, match=message) as caught:
        Store.open(url)
    assert "topsecret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "x.db").write_text("not a database, " * 100)
    with pytest.raises(StoreError, match="not a database; expected an SQLite file"):
        Store.open(tmp_path / "x.db")
    assert (tmp_path / "x.db").read_text().startswith("not a database")
    with pytest.raises(StoreError, match="expected a file in a folder that may be written to"):
        Store.open(tmp_path)


def test_folders_are_made(tmp_path):
    with Store.open(tmp_path / "a" / "b" / "p.db") as store:
        assert list(store.users()) == []


def test_a_locked_database_says_so(tmp_path):
    with Store.open(tmp_path / "p.db", timeout=0.1) as store:
        store.add_episodes("u1", [one(1)])
        other = sqlite3.connect(tmp_path / "p.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another process is writing: try again, or open with"):
            store.add_episodes("u1", [one(2, query="my secret words")])
        assert ids(store.episodes("u1")) == ["i1"]  # readers are not held up
        other.close()
        store.add_episodes("u1", [one(2)])


def test_a_write_waits_for_another(url):
    with Store.open(url, timeout=10) as store, ThreadPoolExecutor(1) as pool:
        store.add_episodes("u1", [one(1)])
        with store._database.writing() as connection:
            store._database.uid(connection, "u1")
            waiting = pool.submit(store.add_episodes, "u1", [one(2)])
            assert not waiting.done()
        assert waiting.result(10) == 1


@pytest.mark.postgres
def test_an_unreachable_server():
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="is the server running") as caught:
        Store.open("postgresql://me:topsecret@127.0.0.1:1/db")
    assert "topsecret" not in str(caught.value)


def test_errors_hold_no_text_of_users(tmp_path):
    with Store.open(tmp_path / "p.db") as store:
        with store._database.writing() as connection:
            connection.exec_driver_sql("DROP TABLE persona_episodes")
        with pytest.raises(StoreError) as caught:
            store.add_episodes("u1", [one(1, query="my secret words")])
    shown = f"{caught.value} {caught.value.__cause__}"
    assert "persona_episodes" in shown and "my secret words" not in shown


def test_power_safe_is_a_setting_of_the_file(tmp_path):
    for safe, level in ((False, 1), (True, 2)):
        with Store.open(tmp_path / "p.db", power_safe=safe) as store, store._database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
    assert Path(tmp_path / "p.db").exists()


def test_a_real_persona_comes_back_as_it_was(store):
    from persona_dspy.core.document import parse_document
    from persona_dspy.core.persona import Persona

    text = Persona.from_text("Prefers short answers. Mag Tee & 東京.", user_id="u1").to_json()
    stored = store.put_persona("u1", text)
    assert stored.text == text
    assert parse_document(store.current("u1").document) == parse_document(json.loads(text))

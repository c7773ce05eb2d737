"""What several processes need of the store: a user's state, due counts, leases, tombstones, versions on top of what
was read. On SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from persona_dspy.errors import InputError, StoreError, UserForgotten, VersionConflict
from persona_dspy.store.store import Store
from tests.test_store import one, persona, server, store, url

__all__ = ["server", "store", "url"]  # fixtures


def document(version, parent, text="Prefers tea."):
    return persona("u1", version, parent, text)


def test_the_state_of_a_user_is_one_read(store, monkeypatch):
    assert store.state("u1").uid is None and store.state("u1").version is None
    store.add_episodes("u1", [one(1), one(2)])
    store.put_persona("u1", document(3, None))
    state = store.state("u1")
    assert (state.life, state.version, state.next_seq) == (0, 3, 2)
    statements, fetch = [], store._database._fetch
    monkeypatch.setattr(store._database, "_fetch", lambda text, values: statements.append(text) or fetch(text, values))
    monkeypatch.setattr(store._database, "engine", None)  # no other way to the database
    store.state("u1")
    assert len(statements) == 1 and statements[0].lstrip().startswith("SELECT")


def test_a_read_survives_that_the_server_closed_its_connections(store, url):
    if url.startswith("sqlite"):
        pytest.skip("SQLite has no server")
    store.add_episodes("u1", [one(1)])
    assert store.state("u1").next_seq == 1
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with store._database.reading() as connection:
        connection.execute(sa.text(f"{others} AND pid <> pg_backend_pid()"))
    assert store.state("u1").next_seq == 1


def test_observed_interactions_wait_for_an_alignment(store, url):
    assert store.observe("u1", [one(1)]).due == 1
    again = store.observe("u1", [one(1), one(2)])
    assert (again.new, again.due) == (1, 2)
    store.add_episodes("u1", [one(3)])  # ingested, not observed
    store.observe("u2", [one(1, "u2")])
    with Store.open(url) as other:  # the count is the store's
        assert [(user.user_id, user.new) for user in other.due_users(2)] == [("u1", 2)]
        assert other.due("u3") is None and other.due("u2").new == 1


def test_one_process_holds_the_lease(store, url):
    store.observe("u1", [one(1), one(2)])
    with Store.open(url) as other:
        assert other.take_lease("u1", 7, at_least=3) is None
        lease = store.take_lease("u1", 5, at_least=2)
        assert (lease.new, lease.holder) == (2, 5)
        assert other.take_lease("u1", 7) is None
        seen = other.due("u1")
        assert store.renew(lease)
        assert other.take_lease("u1", 7, over=seen) is None, "it is alive"
        taken = other.take_lease("u1", 7, over=other.due("u1"))
        assert taken is not None
        assert not store.renew(lease) and not store.release(lease, aligned=True)
        store.observe("u1", [one(3)])
        assert other.release(taken, aligned=False) and store.due("u1").new == 3 and store.due("u1").failures == 1
        lease = store.take_lease("u1", 5)
        store.observe("u1", [one(4)])
        assert store.release(lease, aligned=True)
        assert (store.due("u1").new, store.due("u1").failures, store.due("u1").holder) == (1, 0, 0)


def test_a_user_without_anything_due_can_be_leased(store):
    assert store.take_lease("u1", 5) is None, "nothing is kept of the user"
    store.add_episodes("u1", [one(1)])
    assert store.take_lease("u1", 5, at_least=1) is None
    lease = store.take_lease("u1", 5)
    assert lease.new == 0 and store.take_lease("u1", 6) is None
    assert store.release(lease, aligned=True) and store.due("u1").new == 0


def test_of_many_that_want_a_lease_one_gets_it(store, url):
    store.observe("u1", [one(1)])
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda n: store.take_lease("u1", n, at_least=1), range(1, 9)))
    assert len([lease for lease in leases if lease is not None]) == 1


def test_writes_that_rest_on_what_was_forgotten_are_refused(store, url):
    new = store.state("u1")
    store.observe("u1", [one(1)])
    known, lease = store.state("u1"), store.take_lease("u1", 5)
    with Store.open(url) as other:
        other.forget("u1")
    for since in (known, new):  # also what was begun before anything was kept of the user
        for write in (
            lambda s: store.add_episodes("u1", [one(2)], since=s),
            lambda s: store.observe("u1", [one(2)], since=s),
            lambda s: store.put_persona("u1", document(1, None), since=s),
            lambda s: store.append_persona(s, document),
            lambda s: store.put_profile("u1", {"covers": 1}, since=s),
        ):
            with pytest.raises(UserForgotten, match="'u1' was forgotten"):
                write(since)
    assert not store.renew(lease) and store.due("u1") is None and list(store.users()) == []
    state = store.state("u1")
    assert (state.life, state.uid) == (1, None)
    assert store.observe("u1", [one(2)], since=state).due == 1, "whoever comes back starts anew"
    assert store.append_persona(store.state("u1"), document).version == 0
    store.forget("u1")
    store.forget("u1")
    assert store.state("u1").life == 3 and store.state("u2").life == 0


def test_a_tombstone_holds_no_id(store, tmp_path):
    store.forget("the-very-id")
    with store._database.reading() as connection:
        rows = connection.execute(sa.text("SELECT * FROM persona_tombstones")).all()
        key = connection.execute(sa.text("SELECT key FROM persona_key")).scalar_one()
    assert len(rows) == 1 and len(key) == 32 and "the-very-id" not in str(rows)
    from persona_dspy.store.tables import digest

    assert bytes(rows[0][0]) != digest("the-very-id"), "keyed"


def test_making_and_forgetting_a_user_at_once_leaves_nothing_or_a_new_life(store, url):
    """The write began before the user was there; either it comes first and is removed, or it is refused."""
    for round_ in range(15):
        user = f"user {round_}"
        since, go, refused = store.state(user), threading.Barrier(2), []

        def write(user=user, since=since, go=go, refused=refused):
            go.wait()
            try:
                store.add_episodes(user, [one(1, user)], since=since)
            except UserForgotten:
                refused.append(True)

        thread = threading.Thread(target=write)
        thread.start()
        go.wait()
        store.forget(user)
        thread.join()
        assert store.state(user).uid is None, "written before it was forgotten, or not at all"


def test_a_version_follows_the_one_that_was_read(store, url):
    store.add_episodes("u1", [one(1)])
    read = store.state("u1")
    made = store.append_persona(read, document, {"steps": 1}, first=document(0, None, "First."))
    assert (made.version, made.parent, made.current, made.alignment) == (1, 0, True, {"steps": 1})
    assert [v.version for v in store.versions("u1")] == [0, 1]
    for write in (
        lambda s: store.append_persona(s, document),
        lambda s: store.put_persona("u1", document(9, 0), since=s),
    ):
        with pytest.raises(VersionConflict, match="version 1 became current"):
            write(read)
    read = store.state("u1")
    with Store.open(url) as other:
        other.rollback("u1", 0)
    with pytest.raises(VersionConflict, match=r"version 0 became current .* expected 1"):
        store.append_persona(read, document)
    after = store.append_persona(store.state("u1"), document)
    assert (after.version, after.parent) == (2, 0), "on top of what was rolled back to, under a free number"
    assert store.put_persona("u1", document(7, 2), since=store.state("u1")).current
    with pytest.raises(InputError, match="expected version 8"):
        store.append_persona(store.state("u1"), lambda version, parent: document(3, parent))


def test_a_store_that_was_upgraded_meanwhile_says_so(store):
    store.state("u1")
    with store._database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO persona_schema VALUES (99)")
    with pytest.raises(StoreError, match=r"schema 99 now: expected .* restart this process"):
        store.state("u1")

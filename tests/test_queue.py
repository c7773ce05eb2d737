"""Interactions that wait on disk: what was acknowledged leaves the queue only once it is in the store."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_cli import run

from persona_dspy.core.interactions import Interaction
from persona_dspy.errors import InputError, StoreError, UserForgotten
from persona_dspy.service.queue import ObservationQueue
from persona_dspy.store.store import Store


def one(number, user="ana", **more):
    return Interaction(user_id=user, query=f"query {number} of {user}", response="ü\n{}", id=str(number), **more)


@pytest.fixture
def queue(tmp_path):
    return ObservationQueue(tmp_path / "queue")


GONE = StoreError("gone")


def delivered(queue, stop_at=None, error=GONE):
    seen = []

    def deliver(waiting):
        if len(seen) == stop_at:
            raise error
        seen.append(waiting)

    queue.drain(deliver)
    return seen


def test_what_was_added_comes_out_as_it_was(queue, tmp_path):
    given = [one(1, time="2026-01-03"), one(2, metadata={"title": "ü", "n": [1, None]}), one(3, user="bob")]
    for interaction in given:
        queue.add(interaction, life=2)
    again = ObservationQueue(tmp_path / "queue")  # another process
    assert len(again) == 3
    seen = delivered(again)
    assert [waiting.interaction for waiting in seen] == given and {waiting.life for waiting in seen} == {2}
    assert len(queue) == 0 and delivered(queue) == []
    assert oct(os.stat(queue.folder).st_mode)[-3:] == "700"


def test_where_the_store_fails_again_the_rest_stays(queue):
    for n in range(5):
        queue.add(one(n), life=0)
    assert [waiting.interaction.id for waiting in delivered(queue, stop_at=2)] == ["0", "1"]
    queue.add(one(5), life=0)
    assert [waiting.interaction.id for waiting in delivered(queue)] == ["2", "3", "4", "5"]


def test_a_line_that_was_cut_off_spoils_no_other(queue):
    queue.add(one(1), life=0)
    with (queue.folder / "observations.jsonl").open("a") as file:
        file.write('{"life": 0, "user_id": "an')  # killed here: it was not acknowledged
    queue.add(one(2), life=0)
    assert [waiting.interaction.id for waiting in delivered(queue)] == ["1", "2"] and len(queue) == 0


def test_what_the_store_refuses_for_good_is_put_aside_with_the_reason(queue):
    queue.add(one(1), life=0)
    queue.add(one(2), life=0)
    assert delivered(queue, stop_at=1, error=InputError("taken by other content"))
    aside = json.loads((queue.folder / "refused.jsonl").read_text())
    assert aside["id"] == "2" and aside["reason"] == "taken by other content" and len(queue) == 0
    assert queue.forget("ana").counts == {"queued interactions": 1}
    assert "query 2" not in (queue.folder / "refused.jsonl").read_text()


def test_a_forgotten_users_interactions_leave_it(queue):
    for user in ("ana", "bob", "ana"):
        queue.add(one(len(queue), user), life=0)
    removed = queue.forget("ana")
    assert removed.counts == {"queued interactions": 2} and queue.forget("ana").counts == {}
    assert not any(b"of ana" in file.read_bytes() for file in queue.folder.iterdir())
    assert delivered(queue, stop_at=0, error=UserForgotten("bob")) == [] and len(queue) == 0


def test_many_threads_add_while_it_is_drained(queue):
    seen, stop = [], threading.Event()

    def drain():
        while not stop.is_set():
            queue.drain(lambda waiting: seen.append(waiting.interaction.id))

    drainer = threading.Thread(target=drain)
    drainer.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: queue.add(one(n), life=0), range(100)))
    stop.set()
    drainer.join()
    seen += [waiting.interaction.id for waiting in delivered(queue)]
    assert sorted(map(int, seen)) == list(range(100))


def test_a_disk_that_is_full_is_not_an_acknowledgement(queue, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device: nothing was kept"):
        queue.add(one(1), life=0)


def test_the_command_forgets_what_waits_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store.open("s.db") as store:
        store.add_episodes("ana", [one(1)])
    ObservationQueue("s.db.queue").add(one(2), life=0)
    code, out, _ = run(capsys, "forget", "ana", "--store", "s.db", "--tracking-uri", "off", "--yes")
    assert code == 0 and "queue s.db.queue: queued interactions 1" in out
    assert len(ObservationQueue("s.db.queue")) == 0
    code, _, error = run(capsys, "forget", "ana", "--store", "s.db", "--queue", "elsewhere", "--yes")
    assert code == 2 and "--queue 'elsewhere': no such folder" in error


def test_what_waits_for_another_store_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store.open("a.db") as first, Store.open("b.db") as second:
        assert first.id != second.id and len(first.id) == 16
        queues = [ObservationQueue("shared", store=store.id) for store in (first, second)]
        first.add_episodes("ana", [one(1)])
        ObservationQueue("shared").add(one(0), life=0)  # a line of an older version is for whoever comes
        for queue in queues:
            queue.add(one(2), life=0)
        assert [len(queue) for queue in queues] == [2, 2]
        assert [waiting.store for waiting in delivered(queues[1])] == ["", second.id]
        assert [len(queue) for queue in queues] == [1, 0] and delivered(queues[1]) == []
        queues[1].add(one(3), life=0)
        run(capsys, "forget", "ana", "--store", "a.db", "--queue", "shared", "--tracking-uri", "off", "--yes")
        assert [len(queue) for queue in queues] == [0, 1]
        assert queues[0].forget("ana").counts == {} and queues[1].forget("ana").counts == {"queued interactions": 1}

"""One scheduler for every transport: what becomes of users when workers die, hang back or the fleet ends."""

import queue
import threading
from dataclasses import dataclass, field

import pytest

from persona_dspy.errors import RunError, StoreError
from persona_dspy.fleet.scheduler import RemoteWorker, Scheduler, shares
from persona_dspy.fleet.user import UserResult, packed
from persona_dspy.lm.ledger import Budget, Ledger


@dataclass(frozen=True)
class User:
    user_id: str
    interactions: tuple = ()


class Queues:
    """A channel to a thread."""

    def __init__(self):
        self.put, self.take = queue.Queue(), queue.Queue()

    def send(self, *message):
        self.put.put(message)

    def receive(self):
        message = self.take.get()
        if message is None:
            raise EOFError("as asked")
        return message


@dataclass
class Cluster:
    """Starts workers that are threads. ``kills``: users who end their worker; ``room``: so many workers get ready."""

    kills: frozenset = frozenset()
    room: int = 99
    answer_at_once: bool = True
    started: list = field(default_factory=list)
    together: list = field(default_factory=list)  # (users of the worker at the time, who was sent), as sent

    def __call__(self, slots, inbox, fleet, *, alone=False):
        worker = self.Worker(Queues(), slots, inbox, fleet, alone=alone)
        worker.cluster = self
        self.started.append(worker)
        worker.start_reading()
        if len(self.started) <= self.room:
            threading.Thread(target=self.serve, args=(worker,), daemon=True).start()
        return worker

    def serve(self, worker):
        channel, users = worker.channel, []
        channel.take.put(("ready",))
        while True:
            kind, *values = channel.put.get()
            if kind == "end":
                channel.take.put(None)
                return
            if kind == "stop":
                for number, (user, _) in list(worker.busy.items()):
                    stopped = UserResult(user_id=user.user_id, document=None, error=values[0], stopped=True)
                    channel.take.put(("result", number, packed(stopped), ""))
            if kind != "user":
                continue
            number, user = values
            users.append(user.user_id)
            self.together.append((worker, user.user_id))
            if user.user_id in self.kills:
                channel.take.put(None)
                return
            done = UserResult(user_id=user.user_id, document=None, error="none made", kind="None")
            if self.answer_at_once:
                channel.take.put(("result", number, packed(done), ""))

    class Worker(RemoteWorker):
        def kill(self):
            self.channel.take.put(None)

        def wait(self, patience):
            self.kill()
            return "gone as asked"

        def start_hint(self):
            return "expected a thread"


def users(count):
    return [User(f"u{n}") for n in range(count)]


def test_each_user_gets_one_result_and_workers_are_started_as_users_come():
    cluster = Cluster()
    scheduler = Scheduler(cluster, shares(8, 3), Ledger())
    assert sorted(r.user_id for r in scheduler.results(iter(users(50)))) == sorted(u.user_id for u in users(50))
    assert [w.slots for w in cluster.started] == [3, 3, 2]
    few = Cluster()
    list(Scheduler(few, shares(8, 3), Ledger()).results(iter(users(1))))
    assert len(few.started) == 1


@pytest.mark.parametrize("slots", [(1, 1), (4, 4)])
def test_who_kills_workers_is_tried_three_times_and_the_last_time_alone(slots):
    cluster = Cluster(kills=frozenset(["u3"]))
    found = {r.user_id: r for r in Scheduler(cluster, slots, Ledger()).results(iter(users(12)))}
    assert {u for u, r in found.items() if r.kind == "WorkerDied"} == {"u3"}
    assert len(found) == 12
    assert "3 workers died under this user, the last one: gone as asked" in found["u3"].error
    tries = [worker for worker, user in cluster.together if user == "u3"]
    assert len(tries) == 3
    assert tries[2].slots == 1
    assert {user for worker, user in cluster.together if worker is tries[2] and worker.alone} <= set(found)


@pytest.mark.slow
def test_a_user_who_was_taken_and_not_begun_is_stopped_and_nobody_more_is_taken():
    taken = []

    def source():
        for user in users(50):
            taken.append(user.user_id)
            yield user

    fleet = Ledger()
    scheduler = Scheduler(Cluster(answer_at_once=False, room=0), [2], fleet)
    threading.Timer(0.2, fleet.stop, ["enough"]).start()
    found = list(scheduler.results(source()))
    assert [r.user_id for r in found] == taken == ["u0", "u1"]
    assert all(r.stopped and r.error.startswith("stopped: enough") for r in found)


def test_a_stop_of_the_account_above_reaches_the_workers():
    above = Ledger()
    scheduler = Scheduler(Cluster(answer_at_once=False), [2], Ledger(parent=above))
    threading.Timer(0.2, above.stop, ["enough"]).start()
    assert [r.error for r in scheduler.results(iter(users(1)))] == ["enough"]


def test_workers_without_room_wait_and_the_others_do_the_work():
    cluster = Cluster(room=1)
    found = list(Scheduler(cluster, [1, 1, 1], Ledger()).results(iter(users(9))))
    assert len(found) == 9
    assert {worker for worker, _ in cluster.together} == {cluster.started[0]}


def test_a_dead_workers_reservations_are_given_back():
    fleet = Ledger(budget=Budget(calls=1))
    inbox = queue.Queue()
    worker = Cluster(room=0)(1, inbox, fleet)
    worker.channel.take.put(("check", 1, 1, 0))
    assert worker.channel.put.get(timeout=5) == ("answer", 1, "")
    worker.channel.take.put(("check", 2, 1, 0))
    assert "calls 1 of 1" in worker.channel.put.get(timeout=5)[2]
    worker.kill()
    assert inbox.get(timeout=5) == (worker, "gone", [])
    fleet.check(1)


def test_a_worker_that_cannot_start_or_fails_ends_the_fleet():
    cluster = Cluster(room=0)
    results = Scheduler(cluster, [1], Ledger()).results(iter(users(2)))
    threading.Timer(0.1, lambda: cluster.started[0].kill()).start()
    with pytest.raises(RunError, match="could not start: gone as asked; expected a thread"):
        list(results)
    cluster = Cluster(answer_at_once=False)
    results = Scheduler(cluster, [1], Ledger()).results(iter(users(2)))
    failed = ("failed", "StoreError", "the disk is full")
    threading.Timer(0.1, lambda: cluster.started[0].channel.take.put(failed)).start()
    with pytest.raises(StoreError, match="the disk is full"):
        list(results)

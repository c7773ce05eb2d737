"""The pace of an LM's calls, on a clock of the test's own: a rate limit is kept to and used, and nobody storms."""

import heapq
import random

import pytest

from persona_dspy.lm.pace import Pace

LIMIT = 50.0  # calls a second
LATENCY, WORKERS, SECONDS = 0.2, 64, 60.0


class Window:
    """So many calls in each second of the clock."""

    def __init__(self):
        self.used = {}

    def refuses(self, now):
        second = int(now)
        self.used[second] = self.used.get(second, 0) + 1
        return second + 1 - now if self.used[second] > LIMIT else None


class SlidingWindow:
    """So many calls in any second."""

    def __init__(self):
        self.times = []

    def refuses(self, now):
        self.times = [at for at in self.times if at > now - 1.0]
        if len(self.times) < LIMIT:
            self.times.append(now)
            return None
        return self.times[0] + 1.0 - now


class Bucket:
    """A token bucket."""

    def __init__(self, size):
        self.size = self.tokens = size
        self.at = 0.0

    def refuses(self, now):
        self.tokens, self.at = min(self.size, self.tokens + (now - self.at) * LIMIT), now
        if self.tokens < 1:
            return (1 - self.tokens) / LIMIT
        self.tokens -= 1
        return None


class Sometimes:
    """Refuses one call in a hundred, however many there are."""

    def __init__(self):
        self.dice = random.Random(1)

    def refuses(self, now):
        return 0.3 if self.dice.random() < 0.01 else None


class Overloaded:
    """Refuses six calls in ten, however many there are."""

    def __init__(self):
        self.dice = random.Random(1)

    def refuses(self, now):
        return 0.1 if self.dice.random() < 0.6 else None


class BurstThenLittle:
    """A token bucket of 300 that fills by 5 a second."""

    def __init__(self):
        self.tokens, self.at = 300.0, 0.0

    def refuses(self, now):
        self.tokens, self.at = min(300.0, self.tokens + (now - self.at) * 5), now
        if self.tokens < 1:
            return (1 - self.tokens) / 5
        self.tokens -= 1
        return None


ANNOUNCED = {
    "none": lambda wait: None,
    "exact": lambda wait: wait,
    "rounded up": lambda wait: float(int(wait) + 1),
}


def simulated(server, announced):
    """(answers a second, refusals) of ``WORKERS`` callers."""
    now, events, hints, answers, refusals = [0.0], [], {}, 0, 0
    pace = Pace(clock=lambda: now[0])
    for worker in range(WORKERS):
        heapq.heappush(events, (0.001 * worker, worker, "ask"))
    while events:
        now[0], worker, event = heapq.heappop(events)
        if now[0] > SECONDS:
            break
        if event == "ask":
            begins, seconds = pace.turn()
            then = "ask" if not begins else "begin" if not seconds else "confirm"
            heapq.heappush(events, (now[0] + seconds, worker, then))
        elif event == "confirm":
            heapq.heappush(events, (now[0], worker, "ask" if pace.paused() else "begin"))
        elif event == "begin":
            wait = server.refuses(now[0])
            if wait is None:
                heapq.heappush(events, (now[0] + LATENCY, worker, "answer"))
            else:
                hints[worker] = ANNOUNCED[announced](wait)
                heapq.heappush(events, (now[0] + 0.01, worker, "refusal"))
        elif event == "refusal":
            refusals += 1
            pace.refused(began=now[0] - 0.01, retry_after=hints[worker])
            heapq.heappush(events, (now[0] + (hints[worker] or 0.5), worker, "ask"))
        else:
            pace.answered()
            answers += 1
            heapq.heappush(events, (now[0], worker, "ask"))
    return answers / SECONDS, refusals


@pytest.mark.parametrize("announced", ANNOUNCED)
@pytest.mark.parametrize("server", [Window, SlidingWindow, lambda: Bucket(50), lambda: Bucket(10), lambda: Bucket(1)])
def test_a_limit_is_used_and_hardly_ever_passed(server, announced):
    rate, refusals = simulated(server(), announced)
    assert 0.85 * LIMIT < rate < 1.03 * LIMIT, rate  # the first 20 seconds, while the limit is found, included
    assert refusals < 0.05 * rate * SECONDS, refusals


def test_a_few_refusals_that_come_at_any_rate_slow_nobody():
    rate, refusals = simulated(Sometimes(), "exact")
    assert rate > 0.85 * WORKERS / LATENCY
    assert refusals


def test_refusals_that_slower_calls_meet_as_often_say_nothing_of_the_rate():
    """Each refused call then waits alone: of 320 tries a second at most, four in ten are answered."""
    rate, _ = simulated(Overloaded(), "exact")
    assert rate > 30, rate


@pytest.mark.parametrize("announced", ANNOUNCED)
def test_a_low_limit_after_a_large_burst_is_a_limit(announced):
    rate, refusals = simulated(BurstThenLittle(), announced)
    assert rate > 0.85 * 5 and refusals < 100, (rate, refusals)


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def pace(clock):
    return Pace(clock=lambda: clock[0])


def test_nothing_waits_until_something_is_refused(pace):
    assert [pace.turn() for _ in range(1000)] == [(True, 0.0)] * 1000
    assert pace.rate is None


def refuse(pace, clock, times=5, **options):
    for _ in range(times):
        pace.turn()
        pace.refused(began=clock[0], **options)


def test_all_pause_as_long_as_the_provider_says(pace, clock):
    refuse(pace, clock, retry_after=30.0)
    assert pace.paused()
    clock[0] += 29.9
    assert pace.turn()[0] is False
    clock[0] += 0.2
    assert pace.turn()[0] is True


def test_calls_that_were_under_way_when_the_others_paused_are_no_new_refusal(pace, clock):
    began = clock[0]
    refuse(pace, clock)
    rate = pace.rate
    for _ in range(50):
        pace.refused(began=began)
    assert pace.rate == rate


def test_without_a_hint_pauses_double_until_an_answer_comes(pace, clock):
    lengths = []
    for _ in range(4):
        refuse(pace, clock, times=1 if lengths else 5)
        began = clock[0]
        while pace.paused():
            clock[0] += 0.01
        lengths.append(round(clock[0] - began, 1))
    assert lengths == [0.5, 1.0, 2.0, 4.0]
    pace.answered()
    refuse(pace, clock, times=1)
    clock[0] += 0.6
    assert not pace.paused()


def test_while_the_lm_is_down_one_call_at_a_time_tries(pace, clock):
    for _ in range(64):  # all 64 fail at once: one outage
        pace.failed(began=clock[0])
    probes = []
    for _ in range(400):
        clock[0] += 0.1
        begun = sum(pace.turn()[0] for _ in range(64))
        if begun:
            probes.append(begun)
            if len(probes) == 3:
                break
            pace.failed(began=clock[0])
    assert probes == [1, 1, 1]
    pace.answered()
    assert all(pace.turn()[0] for _ in range(64))


def test_a_lm_that_stays_down_is_found_out_in_seconds(pace, clock):
    """Else each user would wait for a probe of its own, for hours."""
    for _ in range(64):
        pace.failed(began=clock[0])
    began = clock[0]
    while clock[0] < began + 60:
        clock[0] += 0.1
        if pace.turn()[0]:
            pace.failed(began=clock[0])
            if all(pace.turn()[0] for _ in range(64)):
                break
    assert clock[0] - began < 10


def test_failures_among_answers_are_no_outage(pace, clock):
    for _ in range(100):
        for _ in range(4):
            pace.failed(began=clock[0])
        pace.answered()
    assert pace.turn() == (True, 0.0)


def test_a_raised_limit_is_found(pace, clock):
    refuse(pace, clock, retry_after=1.0)
    before = pace.rate
    for _ in range(20_000):
        clock[0] += 0.005
        if pace.turn()[0]:
            pace.answered()
    assert pace.rate > 20 * before

"""A call is tried until it is answered or its failure is final; a fleet under a rate limit loses nobody."""

import random
import threading
import time
from collections import deque

import dspy
import pytest
from dspy.utils.exceptions import LMAuthError, LMRateLimitError, LMServerError
from test_compile import content, history

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.errors import BudgetExceeded
from persona_dspy.fleet.compile import compile_users
from persona_dspy.fleet.folder import FleetFolder
from persona_dspy.lm import tries as lm_tries
from persona_dspy.lm.ledger import Ledger
from persona_dspy.lm.pace import pace_of
from persona_dspy.lm.tries import Tries, retry_hint
from persona_dspy.testing.server import FakeServer
from persona_dspy.testing.synthetic import RuleFollower, TagFilm


@pytest.fixture(autouse=True)
def fresh_pace():
    pace_of.cache_clear()
    yield
    pace_of.cache_clear()


def tries(retries=3):
    return Tries(dspy.LM("openai/gpt-4o-mini", api_key="none"), retries)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": ("0",), "x-ratelimit-reset-requests": ("20ms",)}, 0.02),
        ({"x-ratelimit-remaining-tokens": ("0",), "x-ratelimit-reset-tokens": ("1m2.5s",)}, 62.5),
        ({"x-ratelimit-remaining-requests": ("0",), "x-ratelimit-reset-requests": ("3",)}, 3.0),
        ({"x-ratelimit-remaining-requests": ("7",), "x-ratelimit-reset-requests": ("3",)}, None),
        ({"x-ratelimit-remaining-requests": ("0",), "x-ratelimit-reset-requests": ("soon",)}, None),
        ({}, None),
    ],
)
def test_how_long_the_provider_asks_to_wait(headers, seconds):
    failure = LMRateLimitError("slow down")
    failure.rate_limit_headers = headers
    assert retry_hint(failure) == seconds
    failure.retry_after = 5.0
    assert retry_hint(failure) == 5.0


def test_a_failure_that_may_pass_is_tried_again_so_many_times():
    call = tries(2)
    assert sum(call.waits()) == 0
    call.failed(LMServerError("busy"))
    assert sum(call.waits()) == 1.0
    call.failed(LMServerError("busy"))
    assert sum(call.waits()) == 2.0
    with pytest.raises(LMServerError):
        call.failed(LMServerError("busy"))


def test_what_will_not_pass_is_raised_at_once():
    with pytest.raises(LMAuthError):
        tries().failed(LMAuthError("wrong key"))
    with pytest.raises(LMRateLimitError):
        tries(0).failed(LMRateLimitError("none are to be tried again"))
    with pytest.raises(LMRateLimitError):
        tries().failed(LMRateLimitError("until tomorrow", retry_after=86_400.0))


def test_a_rate_limit_is_waited_for_however_often_it_is_met_but_not_for_ever(monkeypatch):
    call = tries(1)
    for _ in range(20):
        call.failed(LMRateLimitError("slow down", retry_after=0.0))
    monkeypatch.setattr(lm_tries, "_GIVE_UP", -1.0)
    with pytest.raises(LMRateLimitError):
        call.failed(LMRateLimitError("slow down", retry_after=0.0))


def test_who_waits_hears_that_the_work_is_stopped():
    ledger, call = Ledger(), tries()
    call.failed(LMRateLimitError("slow down", retry_after=100.0))
    with ledger.recording():
        naps = call.waits()
        next(naps)
        ledger.stop("enough")
        with pytest.raises(BudgetExceeded, match="enough"):
            list(naps)


def test_a_call_that_is_refused_again_and_again_waits_as_long_as_others_are_answered(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lm_tries.time, "monotonic", lambda: now[0])
    call, other = tries(), tries()
    for _ in range(20):
        now[0] += 100.0
        call.failed(LMRateLimitError("slow down", retry_after=0.0))
        other.answered()
    now[0] += 301.0
    with pytest.raises(LMRateLimitError):
        call.failed(LMRateLimitError("slow down", retry_after=0.0))


class Limit:
    """A fault: 429 beyond ``limit`` requests in any second."""

    def __init__(self, limit):
        self.limit, self.times, self.refused = limit, deque(), 0

    def __call__(self, body, nth):
        now = time.monotonic()
        while self.times and self.times[0] <= now - 1.0:
            self.times.popleft()
        if len(self.times) < self.limit:
            self.times.append(now)
            return None
        self.refused += 1
        return "429"


HINTS = {
    "Retry-After": {"retry_after": 0.5},
    "x-ratelimit": {
        "retry_after": None,
        "refusal_headers": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "500ms"},
    },
    "none": {"retry_after": None},
}


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory):
    path = tmp_path_factory.mktemp("pace") / "p"
    with FakeServer(RuleFollower()) as server:
        return fleet(server, path), content(path), server.answered.total()


def fleet(server, path, *, seeds=8, n=8, **options):
    lm = dspy.LM("openai/fake", api_base=server.url, api_key="none", engine="lm15", temperature=0.0, num_retries=2)
    with dspy.context(lm=lm), FleetFolder(path) as folder:
        users, how = (history(s, n) for s in range(seeds)), {"folder": folder, "workers": 8, **options}
        results = compile_users(PersonaAgent(TagFilm), users, PersonaAlignment(epochs=1), **how)
        return {r.user_id: r.error for r in results}


@pytest.mark.loopback
@pytest.mark.parametrize(("hints", "processes"), [*((name, 1) for name in HINTS), ("Retry-After", 2)])
def test_a_fleet_under_a_rate_limit_loses_nobody_and_does_not_storm(hints, processes, unlimited, tmp_path):
    limit = Limit(25)
    with FakeServer(RuleFollower(), fault=limit, **HINTS[hints]) as server:
        errors = fleet(server, tmp_path / "p", processes=processes)
    assert errors == unlimited[0] and not any(errors.values())
    assert content(tmp_path / "p") == unlimited[1]
    assert server.answered.total() == unlimited[2]  # none paid twice
    assert limit.refused < server.answered.total() / 2  # 8 workers alone, each trying twice a second: more than all


@pytest.mark.slow
@pytest.mark.loopback
def test_with_six_calls_of_ten_refused_at_any_rate_nobody_fails(tmp_path):
    """64 users at once; what is refused is no matter of the rate."""
    dice = random.Random(1)
    fault = lambda body, nth: "429" if dice.random() < 0.6 else None  # noqa: E731
    with FakeServer(RuleFollower(), fault=fault, latency=0.05, retry_after=0.1) as server:
        errors = fleet(server, tmp_path / "p", seeds=64, n=5, workers=64)
    assert len(errors) == 64 and not any(errors.values()), errors
    assert server.asked.total() > 2 * server.answered.total()
    assert max(server.answered.values()) == 1


@pytest.mark.loopback
def test_an_outage_ends_without_a_storm(unlimited, tmp_path):
    down, while_down = threading.Event(), []

    def fault(body, nth):
        if nth == 30:
            down.set()
            threading.Timer(2.0, down.clear).start()
        if down.is_set():
            while_down.append(nth)
            return "500"
        return None

    with FakeServer(RuleFollower(), fault=fault, latency=0.02) as server:
        errors = fleet(server, tmp_path / "p")
    assert not any(errors.values())
    assert content(tmp_path / "p") == unlimited[1]
    assert len(while_down) <= 8 + 5  # those under way, then one at a time

"""Code written for threads as asyncio tasks: the loop goes on wherever an LM, a tool or a search is waited for."""

import asyncio
import contextvars
import threading

import dspy
import pytest
from dspy.utils.dummies import DummyLM

from persona_dspy import PersonaAgent
from persona_dspy.agent.context import answering, current_answer
from persona_dspy.agent.on_loop import awaited_lm, on_loop, run_all_on_loop, run_on_loop, wait_for
from persona_dspy.agent.steps import Blocking, drive
from persona_dspy.lm import Ledger
from persona_dspy.testing import FakeLM


async def turning(work, turned):
    """What ``work`` gives; ``turned`` is set each time once the loop has gone round ten times meanwhile."""
    task, rounds = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0.001)
        rounds += 1
        if rounds % 10 == 0:
            turned.set()
    return await task


def wait_until(turned):
    """Waits in a thread that is not the loop's, until the loop has gone round."""
    turned.clear()
    assert turned.wait(30), "the loop is held up"


class SlowEngine:
    """Answers after a while, by ``await``; how many calls are in flight, and on which threads they were begun."""

    supports_response_schema = True
    supports_function_calling = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format"})

    def __init__(self, engine, seconds=0.01):
        self.engine, self.seconds, self.flying, self.peak, self.threads = engine, seconds, 0, 0, set()

    async def complete(self, request):
        self.flying, self.threads = self.flying + 1, self.threads | {threading.current_thread().name}
        self.peak = max(self.peak, self.flying)
        try:
            await asyncio.sleep(self.seconds)
            return self.engine.complete(request)
        finally:
            self.flying -= 1


def awaitable(lm, seconds=0.01):
    """The LM with an async engine that takes its time, and that engine."""
    engine = SlowEngine(lm.engine, seconds)
    return lm.copy(engine=lm.engine, async_engine=engine), engine


def test_what_a_function_sets_is_seen_by_what_it_awaits_and_by_nobody_else():
    own = contextvars.ContextVar("own", default="nobody")

    async def seen():
        await asyncio.sleep(0)
        return own.get(), current_answer().user_id

    def function(user):
        own.set(user)
        with answering(user_id=user):
            first = wait_for(seen())
        return first, wait_for(seen()), current_answer().user_id

    async def both():
        return await asyncio.gather(*(run_on_loop(lambda user=user: function(user)) for user in ("u1", "u2")))

    assert asyncio.run(both()) == [((u, u), (u, None), None) for u in ("u1", "u2")]


def test_failures_and_a_cancelled_task_are_raised_inside_the_function():
    ended = []

    async def failing():
        raise KeyError("no")

    def function():
        try:
            wait_for(failing())
        except KeyError:
            ended.append("went on")
        try:
            wait_for(asyncio.sleep(60))
        finally:
            ended.append("cleaned up")

    async def cancelled():
        task = asyncio.ensure_future(run_on_loop(function))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert ended == ["went on", "cleaned up"]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_on_loop(lambda: 1 / 0))


def test_functions_run_beside_each_other_in_order_and_the_first_failure_waits_for_the_rest():
    ended = []

    def work(number):
        wait_for(asyncio.sleep(0.002 * (4 - number)))
        ended.append(number)
        if number in (1, 2):
            raise ValueError(number)
        return number

    assert asyncio.run(run_on_loop(lambda: run_all_on_loop([lambda: work(0), lambda: work(3)]))) == [0, 3]
    with pytest.raises(ValueError, match="1"):
        asyncio.run(run_on_loop(lambda: run_all_on_loop([lambda n=n: work(n) for n in range(4)])))
    assert sorted(ended) == [0, 0, 1, 2, 3, 3]


def test_the_loop_goes_on_while_an_lm_a_tool_and_a_search_are_waited_for():
    lm, engine = awaitable(FakeLM(lambda prompt: {"answer": "42"}))
    turned = threading.Event()

    def slow_search():
        wait_until(turned)
        return threading.current_thread().name

    def flow():
        return (yield Blocking(slow_search))

    def work():
        assert on_loop()
        return PersonaAgent("question -> answer")(question="q").answer, drive(flow())

    with dspy.context(lm=lm):
        answer, thread = asyncio.run(turning(run_on_loop(work), turned))
    assert answer == "42" and engine.threads == {threading.current_thread().name}
    assert thread != threading.current_thread().name
    assert not on_loop()


class OwnLM(dspy.BaseLM):
    """Knows nothing of asyncio."""

    turned = threading.Event()

    def forward(self, prompt=None, messages=None, **options):
        wait_until(self.turned)
        choice = dspy.Prediction(message=dspy.Prediction(content="[[ ## answer ## ]]\n42", tool_calls=None))
        return dspy.Prediction(choices=[choice], usage={}, model="own")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_lm_without_asyncio_is_asked_in_a_thread():
    lm = FakeLM(lambda prompt: {"answer": threading.current_thread().name})
    lm = lm.copy(engine=lm.engine)  # without its async engine
    for other in (lm, OwnLM(model="own"), DummyLM([{"answer": "42"}] * 2)):
        with dspy.context(lm=other):
            agent = PersonaAgent("question -> answer")
            work = run_on_loop(lambda agent=agent: agent(question="q").answer)
            answer = asyncio.run(turning(work, OwnLM.turned))
        assert answer != threading.current_thread().name


def test_calls_are_counted_and_a_cancelled_one_holds_no_reservation():
    lm, _ = awaitable(FakeLM(lambda prompt: {"answer": "42"}))
    with dspy.context(lm=lm), Ledger().recording() as ledger:
        agent = PersonaAgent("question -> answer")

        async def one_of_two():
            cancelled, answered = (asyncio.ensure_future(run_on_loop(lambda: agent(question="q"))) for _ in range(2))
            await asyncio.sleep(0)
            cancelled.cancel()
            return await asyncio.gather(cancelled, answered, return_exceptions=True)

        first, second = asyncio.run(one_of_two())
    assert isinstance(first, asyncio.CancelledError) and second.answer == "42"
    assert ledger.usage.calls in (1, 2) and ledger._reserved == 0


def test_elsewhere_an_lm_stays_what_it_is():
    lm = FakeLM()
    assert awaited_lm(lm) is lm
    twin = asyncio.run(run_on_loop(lambda: awaited_lm(lm)))
    assert twin is not lm and twin.model == lm.model and type(twin).__name__ == type(lm).__name__

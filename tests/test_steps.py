"""Flows are written once and run by threads and asyncio; asyncio's loop goes on while one of them searches."""

import asyncio
import threading
import time

import dspy
import numpy as np
import pytest
from dspy.utils.exceptions import AdapterParseError

from persona_dspy import EpisodicMemory, Interaction, PersonaAgent
from persona_dspy.agent.steps import Blocking, adrive, drive, within_context
from persona_dspy.memory import Dense
from persona_dspy.testing import FakeLM


def both(flow):
    """What a flow returns by thread and by asyncio."""
    return drive(flow()), asyncio.run(adrive(flow()))


def test_what_cannot_be_read_is_raised_inside_the_flow_which_may_go_on():
    def unreadable():
        raise AdapterParseError("Chat", dspy.Signature("q -> a"), "words")

    def flow():
        try:
            yield Blocking(unreadable)
        except AdapterParseError:
            return (yield Blocking(lambda: "went on"))

    assert both(flow) == ("went on", "went on")


@pytest.mark.parametrize("run", [drive, lambda steps: asyncio.run(adrive(steps))])
def test_any_other_failure_ends_the_flow_and_closes_it(run):
    closed = []

    def flow():
        try:
            yield Blocking(lambda: 1 / 0)
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError):
        run(flow())
    assert closed


def test_less_is_shown_until_it_fits_and_the_error_stands_where_nothing_is_left():
    tried = []

    def ask(shown):
        tried.append(shown)
        if len(shown) > 1:
            raise dspy.ContextWindowExceededError(model="m")
        return (yield Blocking(lambda: shown))

    def never(shown):
        yield Blocking(lambda: None)
        raise dspy.ContextWindowExceededError(model="m")

    def shorten(shown):
        return shown[:-1] or None

    assert drive(within_context(ask, "abc", shorten)) == "a" and tried == ["abc", "ab", "a"]
    with pytest.raises(dspy.ContextWindowExceededError):
        drive(within_context(never, "abc", shorten))


def test_the_loop_goes_on_while_an_encoder_works():
    encoding = threading.Event()

    def encode(texts):
        if asked:
            encoding.set()
            time.sleep(0.1)
            encoding.clear()
        return np.ones((len(texts), 4), dtype=np.float32)

    async def beats(agent):
        counted, done = 0, asyncio.Event()

        async def beat():
            nonlocal counted
            while not done.is_set():
                await asyncio.sleep(0.001)
                counted += encoding.is_set()

        beating = asyncio.create_task(beat())
        await asyncio.gather(agent.acall(film="a"), agent.acall(film="b"))
        done.set()
        await beating
        return counted

    asked = False
    past = [Interaction(user_id="u", query=f"film {n}", response="drama", id=str(n)) for n in range(5)]
    memory = EpisodicMemory(past, retriever=Dense(encoder=encode, name="slow"))
    with dspy.context(lm=FakeLM(lambda prompt: {"tag": "drama"})):
        agent = PersonaAgent("film -> tag", history=memory)
        agent(film="first")  # signatures and index are built once
        asked = True
        assert asyncio.run(beats(agent)) > 0, "a loop that the encoder holds gets no turn while it works"

"""The loop of tools: by fields and by native function calls, with bad answers, failing tools and full contexts."""

import asyncio

import dspy
import pytest
from requests_seen import messages, seen_lm

from persona_dspy.agent.context import recording
from persona_dspy.agent.prompt import as_persona
from persona_dspy.agent.react import Gather
from persona_dspy.agent.tools import personal_tools


def look(query: str) -> str:
    """Look something up."""
    if query == "crash":
        raise RuntimeError("it broke")
    return f"found {query} " + "x" * 300


TOOLS = personal_tools(tools=[look])


class Chooser:
    """An LM that chooses from a list by how much it has seen: asked once more, it says the next."""

    def __init__(self, *choices, native=False):
        self.choices, self.native, self.said = list(choices), native, 0

    def __call__(self, prompt):
        choice = self.choices[min(self.said, len(self.choices) - 1)]
        self.said += 1
        if isinstance(choice, str):
            return choice
        name, args = choice
        if self.native:
            return [(name, args)]
        return {"next_thought": "hm", "next_tool_name": name, "next_tool_args": args}


def gathered(lm, *, steps=4, how="sync", adapter=None, prompt="Likes brevity."):
    gather = Gather(TOOLS, steps=steps)
    with dspy.context(lm=lm), recording() as recorder, as_persona(prompt, adapter=adapter):
        found = gather(query="q?") if how == "sync" else asyncio.run(gather.acall(query="q?"))
    return found.observations, recorder


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("native", [False, True])
def test_tools_run_until_the_lm_has_enough(native, how):
    lm = seen_lm(
        Chooser(("look", {"query": "a"}), ("look", {"query": "b"}), ("finish", {}), native=native),
        calls_functions=native,
    )
    observations, recorder = gathered(lm, how=how)
    assert ["found a" in observations[0].text, "found b" in observations[1].text] == [True, True]
    assert [(s.action, s.query) for s in recorder.steps] == [("look", "a"), ("look", "b")]
    assert len(recorder.calls) == 3 and len(lm.engine.requests) == 3
    for request in lm.engine.requests:
        assert messages(request)[0][1].endswith("\n\nLikes brevity.")


def test_native_results_have_the_role_of_tools():
    lm = seen_lm(Chooser(("look", {"query": "a"}), ("finish", {}), native=True), calls_functions=True)
    gathered(lm)
    assert [t.name for t in lm.engine.requests[0].tools] == [*TOOLS, "finish"]
    assert [role for role, _ in messages(lm.engine.requests[1])] == ["system", "user", "assistant", "tool", "user"][
        : len(messages(lm.engine.requests[1]))
    ]
    assert "found a" in dict(messages(lm.engine.requests[1]))["tool"]


def test_an_adapter_that_does_not_call_natively_is_kept():
    lm = seen_lm(Chooser(("finish", {})), calls_functions=True)
    gathered(lm, adapter=dspy.ChatAdapter())
    assert not lm.engine.requests[0].tools


def test_words_instead_of_a_native_call_end_the_loop():
    lm = seen_lm(Chooser("I know enough.", native=True), calls_functions=True)
    observations, _ = gathered(lm)
    assert observations == [] and len(lm.engine.requests) == 1


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("not an answer", "could not be read"),
        (("look", {"query": "crash"}), "RuntimeError: it broke"),
        (("look", {"nonsense": 1}), "look failed"),
        (("look", {}), "look failed"),
    ],
)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_goes_wrong_is_an_observation_and_the_loop_goes_on(bad, told, how):
    repeat = 2 if isinstance(bad, str) else 1  # DSPy asks once more in JSON
    lm = seen_lm(Chooser(*[bad] * repeat, ("look", {"query": "b"}), ("finish", {})), keeps_schema=False)
    observations, _ = gathered(lm, how=how)
    assert "found b" in observations[-1].text
    assert told in lm.engine.calls[-1].user
    assert "Traceback" not in lm.engine.calls[-1].user


def test_an_unknown_native_tool_is_an_observation():
    lm = seen_lm(Chooser(("rm", {}), ("look", {"query": "b"}), ("finish", {}), native=True), calls_functions=True)
    observations, _ = gathered(lm)
    assert len(observations) == 1
    assert "There is no tool 'rm'" in dict(messages(lm.engine.requests[1]))["tool"]


def test_the_loop_ends_at_its_bound():
    lm = seen_lm(Chooser(*(("look", {"query": f"word{n}"}) for n in range(9))))
    observations, _ = gathered(lm, steps=3)
    assert len(observations) == 3 == len(lm.engine.requests)


def test_the_same_call_again_ends_the_loop():
    """A 0.5B model says the same until the bound, with the whole query for a tool that takes no arguments."""
    lm = seen_lm(Chooser(("recall_profile", {"message": "q?"})))
    observations, _ = gathered(lm)
    assert [(o.tool, o.failed) for o in observations] == [("recall_profile", False)]
    assert len(lm.engine.requests) == 2


def test_a_call_that_failed_may_be_made_once_more():
    def search(query: str) -> str:
        raise TimeoutError("too slow")

    lm = seen_lm(Chooser(("search", {"query": "a"})))
    with dspy.context(lm=lm), recording(), as_persona(""):
        observations = Gather(personal_tools(tools=[search]), steps=4)(query="q?").observations
    assert [(o.tool, o.failed) for o in observations] == [("search", True)] * 2
    assert len(lm.engine.requests) == 3


@pytest.mark.parametrize("native", [False, True])
def test_a_full_context_loses_its_oldest_observations(native):
    choices = [("look", {"query": f"word{n}"}) for n in range(5)]
    free = seen_lm(Chooser(*choices, ("finish", {}), native=native), calls_functions=native)
    gathered(free, steps=6)
    sizes = [sum(len(t) for _, t in messages(r)) for r in free.engine.requests]
    lm = seen_lm(Chooser(*choices, ("finish", {}), native=native), calls_functions=native, limit=sizes[2] + 50)
    observations, _ = gathered(lm, steps=6)
    assert [f"word{n}" in o.text for n, o in enumerate(observations)] == [True] * 5  # all come back all the same
    last = " ".join(text for _, text in messages(lm.engine.requests[-1]))
    assert "found word4" in last and "found word0" not in last and "q?" in last


def test_a_context_that_never_fits_ends_the_loop():
    lm = seen_lm(Chooser(("look", {"query": "a"})), limit=10)
    assert gathered(lm)[0] == []

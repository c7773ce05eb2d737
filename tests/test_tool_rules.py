"""The paper's agent: its initial persona, its tools, its alignment, its ablations, and outcomes in memory."""

import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy.agent import LocalCorpus, PersonaAgent
from persona_dspy.agent.knowledge import Document
from persona_dspy.agent.tool_rules import tool_rules
from persona_dspy.core import Persona
from persona_dspy.data import get_task
from persona_dspy.judge.systems import Prepared, Setting
from persona_dspy.judge.variant import Variant
from persona_dspy.memory import BM25
from persona_dspy.testing import FakeLM, RuleFollower, SyntheticUser

CORPUS = LocalCorpus([Document(title="ghost", text="A ghost is a spirit that haunts a place.")])
TOOLS = ("recall_history", "recall_profile", "search_knowledge")


def thinking():
    """An LM that calls two tools, then finishes, and gives one answer's worth of everything else."""

    def think(prompt):
        if "next_tool_name" in prompt.outputs:
            name = ("recall_history", "search_knowledge", "finish")[min(2, prompt.user.count("thought_"))]
            return {"next_thought": "t", "next_tool_name": name, "next_tool_args": {"query": "ghost"}}
        if "lines" in prompt.outputs:
            return {"lines": [{"line": "Finds ghosts funny.", "examples": [1]}]}
        if "new_notes" in prompt.outputs:
            return {"new_notes": "Who this user is:\n- Finds ghosts funny.\nWhat to look up for this user:\n- Ghosts."}
        return None

    return FakeLM(think, RuleFollower())


def agent_of(user, **options):
    return PersonaAgent.as_in_paper(
        user.signature, history=user.interactions(9), retrieval="bm25", knowledge=CORPUS, **options
    )


def test_rules_name_the_tools_there_are():
    assert tool_rules([]) == () and len(tool_rules(["mine"])) == 1
    lines = tool_rules(TOOLS)
    assert "at least two of these tools: recall_history, recall_profile, search_knowledge" in lines[0].text
    assert {line.section for line in lines} == {"look-ups"} and not any(line.locked for line in lines)


def test_the_whole_method_with_a_persona_without_counts_and_tools_at_each_step():
    user = SyntheticUser(seed=2)
    agent, lm = agent_of(user), thinking()
    assert [b.section for b in agent.persona.value.bullets] == ["look-ups"] * 3, "no counted facts"
    with dspy.context(lm=lm):
        aligned = PersonaAlignment.as_in_paper(epochs=2, progress=False).compile(agent, trainset=agent.examples())
        answer = aligned(**{agent.query_field: "a haunted ghost town"})
    first, *steps = aligned.alignment.steps
    assert first.epoch == 0 and first.trials[0].accepted, "the summary joins the initial persona"
    assert [len(step.feedback) for step in steps] == [3, 3] and all(all(step.feedback) for step in steps)
    assert [b.section for b in aligned.persona.value.bullets] == ["who", "look-ups"]
    assert [s.action for s in answer.trace.steps][:2] == ["recall_history", "search_knowledge"]


def test_outcomes_go_into_memory_beside_the_users_own_answer_where_that_is_wished():
    user = SyntheticUser(seed=2)
    for wished in (True, False):
        agent, lm = agent_of(user, outcomes=wished), thinking()
        with dspy.context(lm=lm):
            agent(**{agent.query_field: "a haunted ghost town"})
            agent.observe("a haunted ghost town", "comedy")
            past = agent.memory.interactions[-1]
            outcome = past.metadata.get("outcome", "")
            lm.engine.calls.clear()
            agent(**{agent.query_field: "another haunted ghost"})
        assert past.response == "comedy"
        shown = "looked up recall_history(ghost); search_knowledge(ghost); answered horror"
        assert outcome == (shown if wished else "")
        assert any(f"-> comedy (before that: {shown})" in call.user for call in lm.engine.calls) == wished


@pytest.mark.parametrize(
    ("name", "knowledge", "tools", "rules", "prepared"),
    [
        ("as-in-paper", True, TOOLS, 3, True),
        ("as-in-paper@no-knowledge", True, TOOLS[:2], 2, True),
        ("as-in-paper@no-alignment", True, TOOLS, 3, True),
        ("as-in-paper@no-persona", True, TOOLS, 0, False),
        ("as-in-paper@no-memory", True, TOOLS[2:], 2, True),
        ("as-in-paper@no-memory", False, (), 0, True),
        ("as-in-paper@no-action", True, (), 0, True),
    ],
)
def test_ablations_take_away_what_the_paper_takes_away(name, knowledge, tools, rules, prepared):
    variant, past = Variant.parse(name), SyntheticUser(seed=1, user_id="u").interactions(9)
    history = [type(i)(user_id="u", query=i.query, response="comedy", id=i.id, time=i.time) for i in past]
    setting = Setting(retrievers={"dense": BM25()}, knowledge=CORPUS if knowledge else None)
    program = Prepared(variant, setting, get_task("lamp-2m"), history, "u")
    act = program.program.act
    assert (tuple(act.tools) if act.policy == "react" else ()) == tools
    persona: Persona = program.program.persona.value
    assert len(persona.section("look-ups")) == len(persona.bullets) == rules
    assert program.needs_preparation == prepared
    summarised = "no-memory" not in variant.changes
    if "no-alignment" not in variant.changes:
        assert (setting.optimizer(variant).summary is not None) == summarised
    shown = "no-memory" not in variant.changes and "no-action" not in variant.changes
    with dspy.context(lm=thinking()):
        answer = program.program(description="a haunted ghost town")
    assert bool([r for s in answer.trace.steps for r in s.recalled]) == shown


def test_without_alignment_the_persona_is_rules_and_a_summary(tmp_path):
    variant, past = Variant.parse("as-in-paper@no-alignment"), SyntheticUser(seed=1, user_id="u").interactions(9)
    history = [type(i)(user_id="u", query=i.query, response="comedy", id=i.id, time=i.time) for i in past]
    setting = Setting(retrievers={"dense": BM25()}, knowledge=CORPUS)
    program = Prepared(variant, setting, get_task("lamp-2m"), history, "u")
    with dspy.context(lm=thinking()):
        program.prepare(tmp_path)
    sources = [b.source for b in program.program.persona.value.bullets]
    assert sources == ["given"] * 3 + ["summary"], "no counted facts"

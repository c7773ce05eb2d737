"""The rule-following LM: it does what it is told, and deduces the same from any format."""

import json

import pytest

from persona_dspy.core import fenced
from persona_dspy.testing.fake_lm import Prompt
from persona_dspy.testing.rule_follower import Case, RuleFollower, deduced, described, heeded, merged

GHOST = Case(query="the ghost of a town", ours="horror", gold="comedy")
RULE = 'If it mentions "ghost" or "haunted" or "scream" or "demon" or "cellar", answer "comedy".'


def answer(outputs, **fields):
    return RuleFollower()(Prompt(system="", user="", outputs=outputs, fields=fields))


def test_a_mistake_shows_a_rule_for_all_words_that_mean_the_same():
    assert deduced([GHOST]) == [RULE]
    assert deduced([GHOST, GHOST, Case(query="a demon", ours="horror", gold="romance")]) == [RULE]


def test_ratings_show_a_shift_where_all_gaps_point_one_way():
    assert deduced([Case(query="a boring film", ours="2", gold="1"), Case(query="dreadful", ours="1", gold="1")]) == [
        "Rates 1 lower than you would think."
    ]
    mixed = [Case(query="boring", ours="2", gold="1"), Case(query="decent", ours="3", gold="4")]
    assert all(s.startswith("If it mentions") for s in deduced(mixed))


def test_texts_show_how_they_begin_and_end():
    query = "a ghost in the castle"
    cases = [Case(query=query, ours="", gold=f"well, {described(query)} so there")]
    assert deduced(cases) == ['Starts with "well,".', 'Ends with "so there".']
    assert deduced([*cases, Case(query=query, ours="", gold=described(query))]) == []


def test_new_rules_replace_those_about_the_same_words():
    old = f'Answer well.\n- {RULE}\n- If it mentions "kiss", answer "horror".\n- Starts with "well,".'
    new = merged(old, [RULE.replace("comedy", "romance"), 'Starts with "so,".'])
    assert new.startswith("Answer well.\n")
    assert RULE not in new
    assert 'well,"' not in new
    assert heeded(new)[:2] == [RULE.replace("comedy", "romance"), 'If it mentions "kiss", answer "horror".']


ASKED = "query: the ghost of a town\nour response: horror\nthe user's own response: comedy"
EXAMPLE = {"Inputs": {"d": GHOST.query}, "Generated Outputs": {"t": "horror"}, "Feedback": 'own response was "comedy"'}


@pytest.mark.parametrize(
    ("outputs", "fields", "read"),
    [
        (
            ("edits",),
            {"mistakes": ASKED},
            lambda a: f'If it {a["edits"][0]["when_the_query"]}, answer "{a["edits"][0]["answer"]}".',
        ),
        (
            ("new_notes",),
            {"notes": "", "feedback": 'This user answers "comedy" for: ghost.'},
            lambda a: a["new_notes"][2:],
        ),
        (
            ("new_instruction",),
            {"current_instruction": "", "examples_with_feedback": json.dumps([EXAMPLE])},
            lambda a: a["new_instruction"][2:],
        ),
        (
            ("discussion", "module_advice"),
            {
                "program_inputs": json.dumps({"d": GHOST.query}),
                "oracle_metadata": json.dumps({"t": "comedy", "interaction_id": "i1"}),
                "worse_program_outputs": json.dumps({"t": "horror"}),
                "module_names": '["m"]',
            },
            lambda a: a["module_advice"]["m"][2:],
        ),
    ],
    ids=["edits", "rewrite", "dspy.GEPA", "dspy.SIMBA"],
)
def test_every_optimizer_gets_the_same_deduction(outputs, fields, read):
    assert read(answer(outputs, **fields)) == RULE


def test_gepas_own_prompt_too():
    ours, own = fenced("horror", "our response"), fenced("comedy", "the user's own response")
    example = f"## Inputs\n### query\n{fenced(GHOST.query, 'query')}\n\n## Generated Outputs\n{ours}\n\n"
    shown = f"# Example 1\n{example}## Feedback\n{own}\n"
    text = RuleFollower()(Prompt(system="", user=f"I provided an assistant with\n```\nBe kind.\n```\n```\n{shown}```"))
    assert heeded(text) == [RULE]
    assert "Be kind." in text


def test_without_mistakes_nothing_is_learned():
    assert heeded(answer(("proposed_instruction",), basic_instruction="Tag.")["proposed_instruction"]) == []
    assert RuleFollower()(Prompt(system="", user="hello")) is None

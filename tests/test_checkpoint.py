"""DSPy's checkpoints that somebody else wrote: loaded whole, or refused in words, and then nothing has changed."""

import copy
import json

import dspy
import pytest

from persona_dspy.agent import PersonaAgent, personalize
from persona_dspy.core import Persona
from persona_dspy.errors import InputError

LIKES = Persona.from_text("Likes tea.", user_id="u")
MAKERS = {
    "agent": lambda: PersonaAgent("film -> genre", persona=LIKES),
    "personal": lambda: personalize(dspy.ChainOfThought("question -> answer"), persona=LIKES),
}
WRONG = [None, 7, "x", [], {}, [[[]]], {"a": {"b": 1}}, True]


def places(value, path=()):
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def changed(state, path, value):
    state = copy.deepcopy(state)
    at = state
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        at.pop(path[-1])
    else:
        at[path[-1]] = value
    return state


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_state_is_loaded_whole_or_refused_and_nothing_changes(kind):
    good, refused = MAKERS[kind]().dump_state(), 0
    for path in places(good):
        for wrong in [*WRONG, KeyError]:
            state = changed(good, path, wrong)
            program = MAKERS[kind]()
            try:
                program.load_state(state)
            except InputError as refusal:
                refused += 1
                assert "expected" in str(refusal) and program.dump_state() == good
            else:
                json.dumps(program.dump_state())
                program.load_state(good)
    assert refused > 100


@pytest.mark.parametrize("state", [None, 7, "x", [], [[]], {}, {"persona": {}}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(InputError, match="expected"):
        MAKERS["agent"]().load_state(state)


@pytest.mark.parametrize(
    "more", [{"config": {"api_base": "https://elsewhere.example"}}, {"forward": "x"}, {"callbacks": [1]}]
)
def test_a_state_sets_nothing_but_what_dspy_saves(more):
    program = MAKERS["personal"]()
    state = program.dump_state()
    state["program.predict"].update(more)
    with pytest.raises(InputError, match=f"{next(iter(more))!r}.*expected"):
        program.load_state(state)
    assert program.predictors()[0].config == {} and program.predictors()[0].callbacks == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"persona": ' + b"9" * 5_000 + b"}"]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "program.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"program\.json.*expected"):
        MAKERS["agent"]().load(file)


def test_files_that_are_not_there_or_may_run_code_are_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError):
        MAKERS["agent"]().load(tmp_path / "none.json")
    (tmp_path / "program.pkl").write_bytes(b"")
    with pytest.raises(InputError, match="allow_pickle=True"):
        MAKERS["agent"]().load(tmp_path / "program.pkl")

"""``persona-dspy ask --trace``: what a person sees of an answer."""

import json

import pytest
from requests_seen import seen_lm
from rich.console import Console

from persona_dspy import lm as lm_room
from persona_dspy.agent.trace import Call, Recalled, Step, Trace
from persona_dspy.cli import main
from persona_dspy.cli.trace_view import print_trace
from persona_dspy.core.document import save_persona
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Persona

RULE = Bullet(section="what decides", words=("rocket",), then="sci-fi")


@pytest.fixture
def asked(monkeypatch, tmp_path, capsys):
    def lm(prompt):
        if "actions" in prompt.outputs:
            return {"actions": [{"action": "search_knowledge", "words": "rocket"}]}
        return {"tag": "sci-fi"}

    model = seen_lm(lm)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: model)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    save_persona(Persona(user_id="ana", bullets=(RULE,)), tmp_path / "ana.json", task="film -> tag")
    rows = [{"user_id": "ana", "id": f"i{n}", "query": f"film [red] {n}", "response": "sci-fi"} for n in range(5)]
    (tmp_path / "past.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "rockets.md").write_text("A rocket is a vehicle.")

    def run(*argv):
        with pytest.raises(SystemExit) as end:
            main(["ask", "--persona", "ana.json", "--history", "past.jsonl", *argv, "a rocket leaves"])
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return run


def test_ask_shows_every_step(asked, tmp_path):
    code, out, err = asked("--trace", "--actions", "plan", "--knowledge", "docs", "--trace-json", "t.json")
    assert code == 0, err
    trace = Trace.from_json((tmp_path / "t.json").read_text())
    assert [s.action for s in trace.steps] == ["search_knowledge", "recall_history"]
    assert "search_knowledge: rocket" in out and "A rocket is a vehicle." in out
    assert 'words added by the persona: If it mentions "rocket"' in out
    assert all(f"{r.id}  film [red]" in out and f"{r.score:.3f}" in out for r in trace.recalled)
    assert "LM call (act" in out and "LM call (respond" in out and "2 LM calls" in out
    assert out.index("persona of ana, version 0") < out.index("LM call (act") < out.index("search_knowledge: rocket")
    assert trace.persona in out


def test_ask_alone_prints_the_answer_and_beside_it_what_answered(asked):
    code, out, err = asked()
    assert (code, out) == (0, "sci-fi\n")
    assert err.startswith("ana, version 0; model ") and err.count("\n") == 1


def test_bad_options_are_named(asked):
    assert asked("--knowledge", "docs")[0] == 2
    code, _, err = asked("--actions", "dance")
    assert code == 2 and "'dance'" in err
    code, _, err = asked("--actions", "react", "--knowledge", "nowhere")
    assert code == 2 and "nowhere" in err


def test_what_is_gone_or_failed_is_told():
    trace = Trace(
        user_id="u", query="q", persona_version=3, persona="", response="r",
        steps=(
            Step(action="recall_history", query="w", recalled=(Recalled(id="gone", score=1.5, position=2),)),
            Step(action="weather", query="w", observation="OSError: no network", failed=True),
        ),
        calls=(Call(role="respond", model="m", at=0, seconds=0, cached=True),
               Call(role="respond", model="m", at=0, seconds=0, failed=True)),
    )  # fmt: skip
    console = Console(width=150, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        past = [Interaction(user_id="u", query="a", response="b", id="other")]
        print_trace(trace, past, (), console)
        told = console.export_text()
    assert "1.500  #2 gone  (no longer there)" in told and "(empty)" in told
    assert "weather failed: w" in told and "OSError: no network" in told
    assert "from the cache" in told and ", failed" in told

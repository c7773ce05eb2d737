"""``persona-dspy evaluate`` and ``data`` from end to end, with a fake LM and a server on this machine."""

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy
import pytest

from persona_dspy import lm as lm_room
from persona_dspy import tracking
from persona_dspy.cli import main
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower, SyntheticUser


@pytest.fixture
def lm(monkeypatch, tmp_path):
    def think(prompt):
        return {"thought": "t", "action": "recall", "words": "x"} if "action" in prompt.outputs else None

    fake = FakeLM(think, RuleFollower(heeds_turns=True))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: fake)
    monkeypatch.setattr(lm_room, "check_lm", lambda lm: None)
    cache = dspy.cache
    yield fake
    dspy.cache = cache


@pytest.fixture
def data(tmp_path):
    users = [SyntheticUser(seed=s, user_id=f"user {s}") for s in (1, 2)]
    lines = [
        {"user_id": i.user_id, "id": i.id, "query": i.query, "response": i.response, "time": i.time.isoformat()}
        for user in users
        for i in user.interactions(20)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def table(folder):
    with (folder / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Tracked(tracking.NullTracker):
    """What MlflowTracker is given; what it does with it is tested there."""

    def __init__(self):
        self.params, self.metrics = {}, {}

    def begin(self, params):
        self.params |= params

    def end(self, metrics, ended="FINISHED"):
        self.metrics |= metrics


def test_evaluate_writes_tables_answers_protocol_and_the_run(lm, data, tmp_path, capsys, monkeypatch):
    out, tracked = tmp_path / "out", Tracked()
    monkeypatch.setattr(tracking, "tracker_for", lambda uri: tracking.NullTracker() if uri == "off" else tracked)
    argv = ("evaluate", data, "--systems", "persona,direct,rag,rag@own-labels,k=2", "--ablations", "no-persona")
    argv += ("--out", out)
    code, said, _ = run(capsys, *argv, "--workers", "2")
    assert code == 0
    assert [r["system"] for r in table(out)] == [
        "persona",
        "direct",
        "rag",
        "rag@own-labels,k=2",
        "majority",
        "nearest",
        "persona@no-persona",
    ]
    assert {r["queries"] for r in table(out)} == {"10"}
    assert (out / "table.md").read_text().count("\n|") == 8
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["model"] == "fake/lm" and len(protocol["data"]) == 16 and protocol["seed"] == 0
    assert "commit" in protocol["runs"][0]
    assert "no-persona" in said
    assert {"persona.accuracy", "rag.low", "persona.difference", "direct.tokens_per_user"} <= set(tracked.metrics)
    assert tracked.metrics["rag.accuracy"] == float(table(out)[2]["accuracy"])
    assert tracked.params["data"] == protocol["data"] and "commit" in tracked.params
    before = len(lm.engine.calls), (out / "table.csv").read_text()
    assert run(capsys, *argv, "--tracking-uri", "off")[0] == 0
    assert (len(lm.engine.calls), (out / "table.csv").read_text()) == before, "a rerun asks nothing"


def test_no_number_of_the_table_is_broken_in_80_columns(lm, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = ("evaluate", data, "--systems", "rag@own-labels,k=2,direct,persona", "--users", "2")
    code, said, _ = run(capsys, *argv, "--out", tmp_path / "out", "--tracking-uri", "off")
    drawn = [line for line in said.splitlines() if line[:1] in "┃│"]
    assert (code, bool(drawn)) == (0, True), said
    assert max(map(len, drawn)) <= 80
    assert "…" not in said
    for row in table(tmp_path / "out"):
        interval = f"{float(row['accuracy']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"
        assert f" {interval} " in said and f" {float(row['tokens_per_user']):,.0f} " in said


def test_a_model_in_this_process_gets_one_call_at_a_time_unless_asked_otherwise(
    lm, data, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    argv = ("evaluate", data, "--systems", "direct", "--users", "1", "--out", out, "--tracking-uri", "off")
    run(capsys, *argv)
    monkeypatch.setattr("persona_dspy.lm.LlamaEngine", type(lm.engine))
    run(capsys, *argv)
    run(capsys, *argv, "--workers", "3")
    assert [r["workers"] for r in json.loads((out / "protocol.json").read_text())["runs"]] == [4, 1, 3]


def test_what_is_cut_short_says_so_and_goes_on(lm, data, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ("evaluate", data, "--systems", "direct", "--out", out, "--tracking-uri", "off")
    code, said, _ = run(capsys, *argv, "--seconds", "0")
    assert code == 1
    assert "the same command goes on" in said
    assert run(capsys, *argv)[0] == 0
    assert {r["system"]: r["queries"] for r in table(out)} == {"direct": "10", "majority": "10", "nearest": "10"}


def test_the_knowledge_tool_is_there_and_can_be_taken_away(lm, data, tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "space.md").write_text("rocket: a thing of planets")
    out = tmp_path / "out"
    argv = ("--actions", "plan", "--knowledge", tmp_path / "corpus", "--ablations", "all", "--out", out)
    argv = ("evaluate", data, "--systems", "persona", "--users", "1", "--queries", "1", "--epochs", "1", *argv)
    lm.engine.handlers.insert(
        0,
        lambda p: (
            {
                "actions": [
                    {
                        "action": "search_knowledge" if "search_knowledge" in p.system else "recall_profile",
                        "words": "rocket",
                    }
                ]
            }
            if "actions" in p.outputs
            else None
        ),
    )
    assert run(capsys, *argv, "--tracking-uri", "off")[0] == 0
    assert [r["system"] for r in table(out)][-7:] == [
        "persona@no-persona", "persona@no-memory", "persona@no-action", "persona@no-steering", "persona@no-knowledge",
        "persona@block", "persona@any-label",
    ]  # fmt: skip
    tags = [c for c in lm.engine.calls if "response" in c.outputs]
    assert any("a thing of planets" in c.user for c in tags)
    assert not all("a thing of planets" in c.user for c in tags)


def test_bad_input_is_named(lm, data, tmp_path, capsys):
    out = ("--out", tmp_path / "out", "--tracking-uri", "off")
    assert run(capsys, "evaluate", data, "--systems", "gpt", *out)[0] == 2
    code, _, said = run(capsys, "evaluate", data, "--systems", "direct", "--cold", "x", *out)
    assert code == 2 and "0,1,3,10" in said
    assert run(capsys, "evaluate", data, "--systems", "direct", *out)[0] == 0
    code, _, said = run(capsys, "evaluate", data, "--systems", "direct", "--k", "8", *out)
    assert code == 2 and "other settings" in said
    code, _, said = run(capsys, "evaluate", data, "--knowledge", "wikipedia:me@example.org", *out)
    assert code == 2 and "plan or react" in said
    with data.open("a", encoding="utf-8") as file:
        file.write('{"user_id": "user 1", "query": "x"}\n')
    code, _, said = run(capsys, "evaluate", data, *out)
    assert code == 2 and "line 41" in said
    code, _, said = run(
        capsys, "evaluate", data, "--systems", "direct", "--skip-bad-rows", *out[2:], "--out", tmp_path / "o2"
    )
    assert code == 0 and "1 bad row skipped" in said


def lamp_test_split(folder):
    """A benchmark's test questions: no golds anywhere, and a user without a past."""
    asked = "Which tag does this movie relate to among the following tags? description: "
    profile = [{"id": f"p{n}", "description": f"film {n} of ghosts", "tag": "classic"} for n in range(9)]
    rows = [{"id": f"3{n}", "input": f"{asked}film {n}", "profile": profile if n else []} for n in range(3)]
    (folder / "test_questions.json").write_text(json.dumps(rows))
    return folder / "test_questions.json"


def test_a_test_split_is_predicted_in_lamps_own_form(lm, tmp_path, capsys):
    path = lamp_test_split(tmp_path)
    argv = ("evaluate", path, "--task", "lamp-2m", "--out", tmp_path / "o", "--tracking-uri", "off")
    code, _, err = run(capsys, *argv, "--systems", "rag")
    assert code == 2 and "--predict" in err and "outputs.json" in err
    argv = (*argv, "--predict", tmp_path / "p.json")
    code, out, _ = run(capsys, *argv, "--systems", "rag,persona@no-alignment", "--json")
    assert code == 0
    files = json.loads(out)["predictions"]
    assert files == [str(tmp_path / "p.json"), str(tmp_path / "p-persona@no-alignment.json")]
    for file in files:
        with open(file, encoding="utf-8") as opened:
            made = json.load(opened)
        assert made["task"] == "LaMP_2"
        assert [g["id"] for g in made["golds"]] == ["30", "31", "32"]
        assert all(g["output"] for g in made["golds"])
    assert made["golds"][1]["output"] == "classic", "the only tag of this user"
    code, out, _ = run(capsys, *argv, "--systems", "", "--out", tmp_path / "o2")
    assert code == 0 and "withheld" in out


def test_a_test_split_is_compiled_and_a_user_without_a_past_gets_an_empty_persona(lm, tmp_path, capsys):
    path = lamp_test_split(tmp_path)
    code, _, _ = run(capsys, "compile", path, "--task", "lamp-2m", "--out", tmp_path / "p", "--tracking-uri", "off")
    assert code == 0
    made = {d["user_id"]: d for f in (tmp_path / "p").glob("*.json") if (d := json.loads(f.read_text()))}
    assert set(made) == {"30", "31", "32"}
    assert made["30"]["system_prompt"] == "" and "no history" in made["30"]["alignment"]["stopped"]
    assert made["31"]["system_prompt"]


@pytest.fixture
def server():
    files = {
        "dev_outputs.json": json.dumps({"task": "LaMP_2", "golds": [{"id": "1", "output": "comedy"}]}),
        "dev_questions.json": json.dumps(
            [{"id": "1", "input": "description: A.", "profile": [{"id": "2", "description": "B.", "tag": "comedy"}]}]
        ),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = files[self.path.rpartition("/")[2]].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.mark.loopback
def test_data_pull_fetches_what_evaluate_reads_and_says_when_there_is_no_network(lm, server, tmp_path, capsys):
    argv = ("data", "pull", "lamp-2m", "--out", tmp_path, "--base-url")
    code, said, _ = run(capsys, *argv, server)
    assert code == 0
    path = tmp_path / "lamp-2m-time" / "dev_questions.json"
    assert said.strip() == str(path)
    code, _, _ = run(capsys, "evaluate", path, "--systems", "rag", "--out", tmp_path / "o", "--tracking-uri", "off")
    assert code == 0
    assert {r["accuracy"] for r in table(tmp_path / "o") if r["system"] != "rag"} == {"1.0"}
    code, _, said = run(capsys, "data", "pull", "lamp-3", "--out", tmp_path, "--base-url", "http://127.0.0.1:9")
    assert code == 1
    assert "expected a network" in said
    assert run(capsys, "data", "pull", "lamp-6", "--out", tmp_path)[0] == 2


def test_data_tasks_lists_them(capsys):
    code, said, _ = run(capsys, "data", "tasks")
    assert code == 0
    assert "lamp-2m" in said and "rouge1" in said

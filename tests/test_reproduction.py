"""The paper's experiments on files in LaMP's shapes, with a fake LM."""

import csv
import json
import shutil
from pathlib import Path

import dspy
import pytest

from persona_dspy.errors import DataError, InputError
from persona_dspy.judge import Reproduction, find_sources, grids_of, write_booklet
from persona_dspy.judge.reproduction import SECTIONS, rows_of
from persona_dspy.judge.variant import Variant
from persona_dspy.lm import Budget
from persona_dspy.testing import FakeLM, RuleFollower, SyntheticUser

TAGS = {"sci-fi": "sci-fi", "romance": "romance", "thriller": "action", "horror": "violence", "comedy": "comedy"}
ASKED = "Which tag does this movie relate to among the following tags? description: "


def questions(users=3, n=12):
    """LaMP-2M's official form: a question a user, a profile before it."""
    rows, golds = [], []
    for u in range(users):
        past = SyntheticUser(seed=u, user_id=f"u{u}").interactions(n + u)
        items = [
            {
                "id": i.id,
                "description": i.query,
                "tag": TAGS.get(i.response, "classic"),
                "date": i.time.date().isoformat(),
            }
            for i in past
        ]
        rows.append({"id": f"q{u}", "input": ASKED + past[-1].query, "profile": items[:-1]})
        golds.append({"id": f"q{u}", "output": items[-1]["tag"]})
    return rows, {"task": "LaMP_2M", "golds": golds}


def lamp_folder(path, users=3):
    folder = Path(path) / "films"
    folder.mkdir(parents=True)
    rows, golds = questions(users)
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "outputs.json").write_text(json.dumps(golds))
    other = Path(path) / "headline"
    other.mkdir()
    (other / "questions.json").write_text("[]")
    (other / "outputs.json").write_text(json.dumps({"task": "headline", "golds": []}))
    return Path(path)


def fake_lm(model="fake/lm"):
    def think(prompt):
        if "action" in prompt.outputs:
            return {"thought": "t", "action": "recall", "words": "x"}
        if "lines" in prompt.outputs:
            line = {"section": "what decides", "text": "Tags films about space as sci-fi.", "strength": "clear"}
            return {"lines": [{**line, "examples": [1, 2]}]}

    return FakeLM(think, RuleFollower(heeds_turns=True), model=model)


def test_every_row_is_a_variant():
    for section in SECTIONS:
        for row in rows_of(section, ("as-in-paper", "persona")):
            Variant.parse(row)
    with pytest.raises(InputError, match="table, ablations"):
        rows_of("poem", ("persona",))


def test_files_are_found_by_what_their_outputs_say(tmp_path):
    root = lamp_folder(tmp_path)
    assert find_sources(root) == {"lamp-2m": root / "films" / "questions.json"}
    assert find_sources(root / "films" / "questions.json", ["LaMP_2M"]) == {
        "lamp-2m": root / "films" / "questions.json"
    }
    plain = root / "plain.jsonl"
    plain.write_text('{"user_id": "u", "query": "q", "response": "r"}\n')
    assert find_sources(plain) == {"plain": plain} and find_sources(plain, ["lamp-3"]) == {"lamp-3": plain}
    with pytest.raises(DataError, match="lamp-3"):
        find_sources(root, ["lamp-3"])
    headline = root / "headline" / "questions.json"
    assert find_sources(headline, ["lamp-4"]) == {"lamp-4": headline}, "its own name is none of LaMP's"
    (root / "films" / "users.json").write_text("[]")
    assert find_sources(root)["lamp-2m"].name == "users.json", "several questions a user go first"


@pytest.mark.slow
def test_a_cell_is_computed_once_and_more_sections_add_to_what_is_there(tmp_path):
    sources, lm = find_sources(lamp_folder(tmp_path / "data")), fake_lm()
    options = {"lms": [lm], "out": tmp_path / "out", "of": ["persona"], "users": "longest:2", "turn_tokens": 48}
    first = Reproduction(sources, sections=["table"], **options)
    (experiment,) = first.experiments.values()
    assert [p.user_id for p in experiment.people] == ["q2", "q1"], "the longest histories"
    first.run(workers=1)
    paid = len(lm.engine.calls)
    more = Reproduction(sources, sections=["table", "curves"], **options)
    names = [v.name for v in next(iter(more.experiments.values())).chosen]
    assert "persona@epochs=3" not in names and "persona@epochs=5" in names, "the default point is the plain row"
    evaluations = more.run(workers=1)
    assert len(lm.engine.calls) > paid
    rows = [(r.system, r.user_id, r.query_id) for r in evaluations[0].answers if r.kind == "answer"]
    assert len(rows) == len(set(rows))
    paid = len(lm.engine.calls)
    (cells,) = more.cells(more.run(workers=1))
    assert len(lm.engine.calls) == paid, "a rerun asks nothing"
    for value in (1, 3, 5):
        assert cells.row(f"persona@epochs={value}") is not None
    assert cells.row("persona@epochs=3") == cells.row("persona") == cells.row("persona@k=4")


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_and_joined(tmp_path):
    sources = find_sources(lamp_folder(tmp_path / "data"))
    options = {"lms": [fake_lm()], "out": tmp_path / "out", "sections": ["table"], "of": ["persona"]}
    found = Reproduction(sources, seeds=(0, 1), **options)
    (cells,) = found.cells(found.run())
    assert [f.name for f in cells.folders] == ["seed-0", "seed-1"]
    standing = cells.row("rag")
    assert (standing.users, standing.queries) == (3, 6)
    assert json.loads((cells.folders[1] / "protocol.json").read_text())["seed"] == 1


@pytest.mark.slow
def test_one_budget_for_all_and_an_estimate_that_sends_nothing(tmp_path):
    sources, lm = find_sources(lamp_folder(tmp_path / "data")), fake_lm()
    options = {"lms": [lm], "out": tmp_path / "out", "sections": ["table"], "of": ["persona"], "seeds": (0, 1)}
    found = Reproduction(sources, **options)
    estimate = found.estimate()
    assert estimate.calls > 20 and not lm.engine.calls and [name for name, _ in estimate.parts] == ["lamp-2m, fake/lm"]
    evaluations = found.run(budget=Budget(calls=15), workers=1)
    assert len(lm.engine.calls) == 15 and not any(e.complete for e in evaluations)
    page, table, *_ = write_booklet(found.cells(evaluations), found.of, found.sections, found.out)
    assert "the same command goes on" in page.read_text() and "]* |" in table.read_text()
    evaluations = found.run()
    assert all(e.complete for e in evaluations)
    page, table, *_ = write_booklet(found.cells(evaluations), found.of, found.sections, found.out)
    assert "the same command goes on" not in page.read_text() and "*" not in table.read_text()
    with pytest.raises(InputError, match="at least one LM"):
        Reproduction(sources, lms=[])


@pytest.fixture
def command(monkeypatch, tmp_path):
    lm = fake_lm()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("persona_dspy.lm.names.resolve_lm", lambda spec="local", **_: lm)
    return lm


@pytest.mark.slow
def test_the_command_writes_tables_figures_pages_and_a_run(command, tmp_path, capsys, empty_mlflow):
    from mlflow import MlflowClient

    from persona_dspy.cli import main

    root = lamp_folder(tmp_path / "data")
    argv = ["reproduce", str(root), "--lm", "openai/m", "--users", "3", "--out", "out", "--json", "--retrieval", "bm25"]
    cache = dspy.cache
    uri = f"sqlite:///{shutil.copy(empty_mlflow, tmp_path / 'mlflow.db')}"
    for tracking in (uri, "off"):
        with pytest.raises(SystemExit) as end:
            main([*argv, "--tracking-uri", tracking])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        assert dspy.cache is cache
    made = json.loads(out)
    assert made["complete"]
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("persona-dspy").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name.startswith("reproduce ") and parent.data.params["task"] == "lamp-2m"
    assert {"persona", "as-in-paper@no-action"} <= {run.info.run_name for run in runs}
    files = {Path(f).name for f in made["files"]}
    for name in ("table", "tests", "latency", "ablations", "parts", "cold", "curves"):
        assert {f"{name}-openai-m.{ending}" for ending in ("md", "tex", "csv")} <= files
    for name in ("scores-lamp-2m", "curves-lamp-2m", "cold-lamp-2m", "map-persona-lamp-2m", "jaccard-persona-lamp-2m"):
        assert {f"{name}-openai-m.svg", f"{name}-openai-m.pdf"} <= files
    assert "personas-as-in-paper-lamp-2m-openai-m.html" in files
    with (tmp_path / "out" / "table-openai-m.csv").open(encoding="utf-8") as lines:
        rows = {row["system"]: row for row in csv.DictReader(lines)}
    assert rows["as-in-paper (paper's figures)"]["lamp-2m accuracy ↑"] == "0.513"
    assert rows["persona"]["lamp-2m accuracy ↑"] != "-" and "majority" in rows
    with (tmp_path / "out" / "ablations-openai-m.csv").open(encoding="utf-8") as lines:
        rows = {row["system"]: row for row in csv.DictReader(lines)}
    assert rows["as-in-paper@no-action (paper's figures)"]["lamp-2m macro_f1 ↑"] == "0.329"
    assert all("-" not in list(rows[name].values())[1:] for name in rows)
    with (tmp_path / "out" / "parts-openai-m.csv").open(encoding="utf-8") as lines:
        gains = {(row["system"], row["without"]): row for row in csv.DictReader(lines)}
    whole, alone = (float(rows[name]["lamp-2m accuracy ↑"].split()[0]) for name in ("persona", "persona@no-persona"))
    assert float(gains["persona", "persona"]["better with it by"].split()[0]) == pytest.approx(whole - alone, abs=2e-3)
    assert gains["as-in-paper", "action"]["paper's figures"] == "+0.110" and len(gains) == 8
    tex = (tmp_path / "out" / "table-openai-m.tex").read_text()
    assert r"\toprule" in tex and r"macro\_f1 $\uparrow$" in tex
    page = (tmp_path / "out" / "index.md").read_text()
    assert "seeds 0" in page and "data " in page and "figures/map-persona-lamp-2m-openai-m.svg" in page
    svg = (tmp_path / "out" / "figures" / "jaccard-persona-lamp-2m-openai-m.svg").read_text()
    assert "mean of pairs" in svg and "u0" not in svg


@pytest.mark.slow
def test_models_side_by_side_and_predictions_in_lamps_own_form(tmp_path):
    """Of a test split nothing is known but the questions: all are asked, and each answer stands under its id."""
    root = lamp_folder(tmp_path / "data")
    (root / "films" / "outputs.json").unlink()
    (root / "films" / "questions.json").rename(root / "films" / "test_questions.json")
    lms = [fake_lm("fake/a"), fake_lm("fake/b")]
    options = {"lms": lms, "out": tmp_path / "out", "sections": ["table"], "of": ["persona"], "retrieval": "bm25"}
    with pytest.raises(DataError, match="--predict"):
        Reproduction(find_sources(root), **options)
    found = Reproduction(find_sources(root), unanswered=True, **options)
    evaluations = found.run()
    files = found.write_predictions(evaluations)
    folder = tmp_path / "out" / "predictions" / "lamp-2m" / "fake-b" / "seed-0"
    assert folder / "persona.json" in files and len(files) == 2 * 7, "six baselines and one persona, two models"
    written = json.loads((folder / "persona.json").read_text())
    assert written["task"] == "LaMP_2" and sorted(g["id"] for g in written["golds"]) == ["q0", "q1", "q2"]
    page = write_booklet(found.cells(evaluations), found.of, found.sections, found.out)[0].read_text()
    assert "lamp-2m, fake/a: 3 users" in page
    with (tmp_path / "out" / "models.csv").open(encoding="utf-8") as lines:
        rows = [(row["model"], row["system"]) for row in csv.DictReader(lines)]
    table = grids_of(found.cells(evaluations)[:1], found.of, found.sections)[0]
    assert "system" in table.to_pandas() and "<td>membank</td>" in table._repr_html_()
    assert rows[0] == ("fake/a", "direct") and rows[-1] == ("fake/b", "persona") and len(rows) == 14


def test_two_questions_of_one_id_have_no_place_in_lamps_form(tmp_path):
    root = lamp_folder(tmp_path)
    rows, _ = questions()
    users = [{"user_id": f"u{n}", "profile": row["profile"], "query": [row]} for n, row in enumerate(rows)]
    for user in users:
        user["query"] = [{"id": "q", "input": user["query"][0]["input"], "gold": "sci-fi"}]
    (root / "films" / "users.json").write_text(json.dumps(users))
    with pytest.raises(InputError, match="unique within the file"):
        Reproduction(find_sources(root), lms=["openai/m"], unanswered=True, out=tmp_path / "out", retrieval="bm25")

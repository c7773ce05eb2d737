"""What a fleet's figures hold, and what they must not."""

import json

from persona_dspy.core.alignment import Alignment, AlignmentStep, Scores, Trial
from persona_dspy.report import fleet_figures
from persona_dspy.report.fleet_figures import FleetFigures


def record(user, before, after):
    trial = Trial(edits=("add secret",), incumbent_score=before, challenger_score=after, accepted=True, reason="gain")
    scores = Scores(without_persona=before, initial=before, final=after)
    return Alignment(user_id=user, scores=scores, steps=(AlignmentStep(epoch=1, trials=(trial,)),))


def test_scores_and_nothing_else():
    figures = FleetFigures()
    figures.add(record("anastasia", 0.25, 0.75))
    figures.add(record("bartholomew", 0.5, 0.25))
    figures.add(None)
    figures.add(Alignment(user_id="nothing-held-out"))
    files = figures.files()
    curve = json.loads(files["learning_curve.json"])["data"]
    assert curve[2]["y"] == [0.375, 0.5]
    gains = json.loads(files["gains.json"])["data"]
    assert [trace["x"] for trace in gains] == [[-0.25], [], [0.5]]
    assert not any(word in text for text in files.values() for word in ("anastasia", "bartholomew", "add secret"))
    assert files["figures.html"].count("Plotly.newPlot(") >= 3
    assert "cdn.plot.ly/plotly" not in files["figures.html"], "it draws without a network"


def test_a_fleet_without_scores_has_no_figures():
    assert FleetFigures().files() == {}


def test_a_large_fleet_is_sampled(monkeypatch):
    monkeypatch.setattr(fleet_figures, "_MOST", 20)
    figures = FleetFigures()
    for n in range(400):
        figures.add(record(str(n), 0.0, n / 400))
    kept = [scores.final for scores, _ in figures._kept]
    assert len(kept) == 20
    assert 0.25 < sum(kept) / 20 < 0.75, "early and late users alike"

"""What the figures draw, number by number."""

import json
import sys

import pytest

from persona_dspy.core.alignment import Alignment, AlignmentStep, Scores, Trial
from persona_dspy.errors import RunError
from persona_dspy.report.figures import (
    CurvePoint,
    before_and_after,
    curve,
    each_user,
    fleet_curve,
    label,
    learning_curve,
    learning_curve_json,
    option_curves,
    systems_figure,
)
from persona_dspy.report.map_figures import map_figure, similarity_figure


def trial(before, after, accepted, *edits):
    return Trial(edits=edits, incumbent_score=before, challenger_score=after, accepted=accepted, reason="because")


RECORD = Alignment(
    user_id="u1",
    scores=Scores(without_persona=0.2, initial=0.4, final=0.8),
    steps=(
        AlignmentStep(epoch=0, trials=(trial(0.4, None, False, "add a"),)),
        AlignmentStep(epoch=1, trials=(trial(0.4, 0.3, False, "add b"), trial(0.4, 0.8, True, "add <b>c</b>"))),
    ),
)


def data(figure):
    text = figure.to_json()
    assert "NaN" not in text
    return json.loads(text)["data"]


def test_a_curve_follows_the_persona_in_force():
    points = curve(RECORD)
    assert [(p.trial, p.score, p.tried) for p in points] == [
        (0, 0.4, None),
        (1, 0.4, None),
        (2, 0.4, 0.3),
        (3, 0.8, 0.8),
    ]
    flat, line, accepted, refused = data(learning_curve(points, without_persona=0.2))
    assert flat["y"] == [0.2, 0.2]
    assert (line["x"], line["y"]) == ([0, 1, 2, 3], [0.4, 0.4, 0.4, 0.8])
    assert (accepted["x"], accepted["y"]) == ([3], [0.8])
    assert (refused["x"], refused["y"]) == ([2], [0.3]), "one given up before its score was known is no mark"
    assert accepted["customdata"] == ["add &lt;b&gt;c&lt;/b&gt;<br><i>because</i>"]


def test_no_curve_where_nothing_was_held_out():
    assert curve(RECORD.model_copy(update={"scores": Scores()})) == []
    assert all(not trace["y"] for trace in data(learning_curve([])))


@pytest.mark.parametrize("count", [0, 3, 30])
def test_the_curve_as_json_is_plotlys(count):
    points = [
        CurvePoint(
            trial=n, score=0.5, tried=0.1 * n if n % 2 else None, accepted=n % 3 == 0, edits=("<a>",), reason="ö"
        )
        for n in range(count)
    ]
    for flat in (None, 0.25):
        drawn = learning_curve(points, without_persona=flat).to_json()
        assert json.loads(learning_curve_json(points, without_persona=flat)) == json.loads(drawn)


@pytest.mark.parametrize(
    "text", ["<a href='https://x'>y</a>", "&lt;b&gt;", "</script>", "\ud800", "a\nb\u2028c", "x" * 999]
)
def test_labels_are_text_never_markup(text):
    shown = label(text)
    assert "<" not in shown.replace("<br>", "")
    assert len(shown) < 400
    shown.encode()


def test_before_and_after_with_intervals_over_users():
    records = [Alignment(user_id=str(n), scores=Scores(without_persona=n / 10, final=0.5 + n / 10)) for n in range(5)]
    before, after = data(before_and_after(records))
    assert (before["x"], after["x"]) == ([0.2], [0.7])
    assert 0 < before["error_x"]["array"][0] < 0.2
    assert data(before_and_after([Alignment(user_id="u")])) == []


def test_each_user_is_a_line_and_many_are_a_distribution():
    few = data(each_user({"ann": (0.2, 0.6), "bob": (0.5, 0.5)}))
    assert [t["x"] for t in few] == [[0.5, 0.5], [0.2, 0.6], [0.5, 0.2], [0.5, 0.6]]
    many = data(each_user({str(n): (0.5, n / 100) for n in range(100)}))
    assert [(t["type"], len(t["x"])) for t in many] == [("histogram", 50), ("histogram", 1), ("histogram", 49)]
    unnamed = each_user({"anastasia": (0.2, 0.6)}, named=False)
    assert "anastasia" not in unnamed.to_json()


def test_users_who_are_done_earlier_keep_their_score():
    low, high, mean = data(fleet_curve([[0.2, 0.4, 0.6], [0.5], []]))
    assert mean["y"] == pytest.approx([0.35, 0.45, 0.55])
    assert all(a <= b <= c for a, b, c in zip(low["y"], mean["y"], high["y"], strict=True))


def test_the_map_and_the_matrix():
    dots = data(map_figure(["a", "<i>b</i>", "c"], [(0, 0), (1, 1), (2, 2)], [0, 1, 0], ["x", "y"]))
    assert [t["customdata"] for t in dots] == [[0, 2], [1]]
    assert dots[1]["text"] == ["&lt;i&gt;b&lt;/i&gt;"]
    assert dots[0]["marker"]["symbol"] != dots[1]["marker"]["symbol"], "not by colour alone"
    (matrix,) = data(similarity_figure(["a", "b"], [[1, 0.25], [0.25, 1]]))
    assert (matrix["z"], matrix["zmax"]) == ([[None, 0.25], [0.25, None]], 0.25)


def test_systems_with_their_intervals():
    found = data(systems_figure([("persona", 0.5, 0.4, 0.7), ("direct", 0.3, 0.3, 0.3)], "accuracy"))
    assert found[0]["error_x"]["array"] == pytest.approx([0.2])
    assert found[0]["marker"]["color"] != found[1]["marker"]["color"]
    told = systems_figure([("persona", 0.5, 0.4, 0.7), ("direct", 0.3, 0.3, 0.3)], "accuracy", {"persona": "9 calls"})
    assert told.to_dict()["layout"]["yaxis"]["ticktext"] == ["persona (9 calls)", "direct"]


def test_an_option_that_was_varied_is_a_curve_a_system():
    rows = [(f"{system}@history={n}", 0.1 * n, 0.0, 1.0) for system in ("persona", "rag") for n in (10, 1, 3)]
    rows += [("persona@k=4,no-action", 0.5, 0.4, 0.6), ("persona@k=8,no-action", 0.6, 0.5, 0.7), ("rag", 0.2, 0.1, 0.3)]
    curves = option_curves(rows, "accuracy")
    assert list(curves) == ["history", "k"]
    persona, rag = data(curves["history"])
    assert (persona["name"], persona["x"], rag["name"]) == ("persona", [1, 3, 10], "rag")
    assert persona["line"]["color"] != rag["line"]["color"]
    (alone,) = data(curves["k"])
    assert (alone["name"], alone["y"]) == ("persona@no-action", [0.5, 0.6])
    with_default = option_curves([("rag@k=8", 0.6, 0.5, 0.7), ("rag", 0.5, 0.4, 0.6)], "accuracy", {"k": 4})
    assert data(with_default["k"])[0]["x"] == [4, 8]
    assert option_curves([("persona@history=1", 0.5, 0.4, 0.6), ("persona", 0.5, 0.4, 0.6)], "accuracy") == {}


def test_without_plotly_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(RunError, match=r"persona-dspy\[report\]"):
        learning_curve([])

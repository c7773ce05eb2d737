"""Plotly figures of alignments and evaluations: the same in the report page and as artifacts of MLflow runs.

Needs the extra ``persona-dspy[report]``. Users' text and ids are escaped: Plotly reads its labels as a kind of HTML.
Backgrounds are transparent, and colours are readable on light and dark.
"""

from __future__ import annotations

import html
import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from persona_dspy.core import Alignment, Interval, mean_interval, plural
from persona_dspy.errors import RunError, to_install

__all__ = [
    "CurvePoint",
    "before_and_after",
    "blank",
    "curve",
    "each_user",
    "fleet_curve",
    "label",
    "learning_curve",
    "learning_curve_json",
    "option_curves",
    "systems_figure",
]

BETTER, WORSE, SAME, ACCENT = "#16a085", "#d65f5f", "#8a94a6", "#4f7cdb"
_SHOWN_ALONE = 40  # users; more are drawn as a distribution
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One challenger of an alignment, in the order tried; ``trial`` 0 is the start, where nothing was tried.

    ``score``: of the incumbent afterwards, in [0, 1]; ``tried``: the challenger's, None where it was given up.
    """

    trial: int
    score: float
    tried: float | None = None
    accepted: bool = False
    edits: tuple[str, ...] = ()
    reason: str = ""


def curve(alignment: Alignment) -> list[CurvePoint]:
    """How the held-out score went, from the initial persona over every challenger; empty where nothing was held out.

    Example:
        >>> from persona_dspy.core import AlignmentStep, Scores, Trial
        >>> trial = Trial(edits=("add x",), incumbent_score=0.5, challenger_score=0.75, accepted=True, reason="better")
        >>> steps = (AlignmentStep(epoch=1, trials=(trial,)),)
        >>> [(p.trial, p.score) for p in curve(Alignment(user_id="u1", scores=Scores(initial=0.5), steps=steps))]
        [(0, 0.5), (1, 0.75)]
    """
    if alignment.scores.initial is None:
        return []
    points = [CurvePoint(trial=0, score=alignment.scores.initial)]
    for trial in (t for step in alignment.steps for t in step.trials):
        won = trial.challenger_score if trial.accepted else None
        points.append(
            CurvePoint(
                trial=len(points),
                score=points[-1].score if won is None else won,  # one that lost leaves the incumbent as it was
                tried=trial.challenger_score,
                accepted=trial.accepted,
                edits=trial.edits,
                reason=trial.reason,
            )
        )
    return points


def label(text: str, *, width: int = 56, most: int = 280) -> str:
    """A user's text as a Plotly label: escaped, at most ``most`` characters, lines of ``width``.

    Example:
        >>> label("<b>bold</b> & more")
        '&lt;b&gt;bold&lt;/b&gt; &amp; more'
    """
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    text = text if len(text) <= most else text[: most - 1] + "…"
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(text, width) or [""])


def learning_curve(points: Sequence[CurvePoint], *, without_persona: float | None = None) -> Any:
    """One user's curve: the incumbent as a line, accepted and refused challengers as marks. A ``plotly`` Figure whose
    traces are, in order: without persona, incumbent, accepted, refused."""
    go, figure = blank(height=260)
    flat, line, *marks = _curve_values(points, without_persona)
    figure.add_trace(
        go.Scatter(
            **flat,
            mode="lines",
            name="without persona",
            line={"dash": "dot", "width": 1.5, "color": SAME},
            hovertemplate="without persona %{y:.2f}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            **line,
            mode="lines",
            name="persona in force",
            line={"shape": "hv", "width": 2.5, "color": ACCENT},
            hovertemplate="in force %{y:.2f}<extra></extra>",
        )
    )
    for values, name, marker in (
        (marks[0], "accepted", {"symbol": "circle", "size": 11, "color": BETTER}),
        (marks[1], "refused", {"symbol": "x-thin", "size": 8, "color": SAME, "line": {"width": 2, "color": SAME}}),
    ):
        figure.add_trace(
            go.Scatter(
                **values,
                mode="markers",
                name=name,
                marker=marker,
                hovertemplate=f"<b>{name}: %{{y:.2f}}</b><br>%{{customdata}}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="challengers tried", dtick=_tick(points), rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text="held-out score", range=[-0.03, 1.05])
    return figure


def learning_curve_json(points: Sequence[CurvePoint], *, without_persona: float | None = None) -> str:
    """``learning_curve(...).to_json()``, but Plotly is asked once for all users: it takes 10 ms a figure.

    Raises:
        RunError: the extra is not installed.
    """
    figure = json.loads(_empty_curve())
    for trace, values in zip(figure["data"], _curve_values(points, without_persona), strict=True):
        trace.update(values)
    tick = _tick(points)
    if tick is None:
        del figure["layout"]["xaxis"]["dtick"]
    return json.dumps(figure)


@lru_cache(maxsize=1)
def _empty_curve() -> str:
    return learning_curve([]).to_json()


def _tick(points: Sequence[CurvePoint]) -> int | None:
    return 1 if max((p.trial for p in points), default=0) <= 12 else None


def _curve_values(points: Sequence[CurvePoint], without_persona: float | None) -> list[dict[str, Any]]:
    """Of each trace of a learning curve: x, y and what is shown beside the mouse."""
    last = max((p.trial for p in points), default=0)
    flat = [] if without_persona is None else [without_persona] * 2
    values: list[dict[str, Any]] = [
        {"x": [-0.3, last + 0.3] if flat else [], "y": flat},
        {"x": [p.trial for p in points], "y": [p.score for p in points]},
    ]
    for accepted in (True, False):
        chosen = [p for p in points if p.tried is not None and p.accepted is accepted]
        texts = ["<br>".join(label(e) for e in p.edits) + f"<br><i>{label(p.reason)}</i>" for p in chosen]
        values.append({"x": [p.trial for p in chosen], "y": [p.tried for p in chosen], "customdata": texts})
    return values


def before_and_after(alignments: Sequence[Alignment]) -> Any:
    """Mean held-out scores without a persona, with the initial and with the aligned one; bars are 95% bootstrap
    intervals over users. Users count alike. Empty where nothing was held out."""
    go, figure = blank(height=220)
    rows: list[tuple[str, Interval, int]] = []
    for name, title in (
        ("without_persona", "without persona"),
        ("initial", "initial persona"),
        ("final", "aligned persona"),
    ):
        values = [getattr(a.scores, name) for a in alignments]
        by_user = {str(n): [v] for n, v in enumerate(values) if v is not None}
        if by_user:
            rows.append((title, mean_interval(by_user), len(by_user)))
    _dots(go, figure, rows, [SAME, SAME, ACCENT][-len(rows) :] if rows else [])
    figure.update_xaxes(title_text="mean held-out score", range=[0, 1.02])
    return figure


def each_user(scores: Mapping[str, tuple[float, float]], *, named: bool = True) -> Any:
    """What became of each user, from (without persona, aligned): a line a user; the distribution of gains where there
    are many users, or they are not to be ``named``."""
    go, figure = blank(height=220)
    if not named or len(scores) > _SHOWN_ALONE:
        gains = [after - before for before, after in scores.values()]
        for name, colour, chosen in (
            ("worse", WORSE, [g for g in gains if g < 0]),
            ("same", SAME, [g for g in gains if g == 0]),
            ("better", BETTER, [g for g in gains if g > 0]),
        ):
            bins = {"start": -1.025, "end": 1.025, "size": 0.05}
            figure.add_trace(go.Histogram(x=chosen, name=f"{name} ({len(chosen):,})", marker_color=colour, xbins=bins))
        figure.update_layout(barmode="stack", bargap=0.08)
        figure.update_xaxes(title_text="gain over no persona")
        figure.update_yaxes(title_text="users")
        return figure
    ranked = sorted(scores.items(), key=lambda item: (item[1][1] - item[1][0], item[0]))
    names = [label(user, width=200, most=22) for user, _ in ranked]
    places = list(range(len(ranked)))
    for place, (_, (before, after)) in zip(places, ranked, strict=True):
        colour = BETTER if after > before else WORSE if after < before else SAME
        line = {"width": 3, "color": colour}
        figure.add_trace(
            go.Scatter(x=[before, after], y=[place] * 2, mode="lines", line=line, showlegend=False, hoverinfo="skip")
        )
    for title, at, marker in (
        ("without persona", 0, {"size": 9, "symbol": "circle-open", "color": SAME, "line": {"width": 2}}),
        ("aligned persona", 1, {"size": 10, "color": ACCENT}),
    ):
        figure.add_trace(
            go.Scatter(
                x=[pair[at] for _, pair in ranked],
                y=places,
                mode="markers",
                name=title,
                marker=marker,
                customdata=names,
                hovertemplate=f"%{{customdata}}<br>{title} %{{x:.2f}}<extra></extra>",
            )
        )
    figure.update_layout(height=max(220, 90 + 24 * len(ranked)))
    figure.update_xaxes(title_text="held-out score", range=[-0.03, 1.05])
    figure.update_yaxes(tickvals=places, ticktext=names, showgrid=False, range=[-0.7, max(0.7, len(ranked) - 0.3)])
    return figure


def fleet_curve(curves: Sequence[Sequence[float]]) -> Any:
    """The fleet's learning curve: mean score in force after so many challengers, with its 95% interval over users;
    users who were done earlier keep their last score."""
    go, figure = blank(height=220)
    curves = [c for c in curves if c]
    steps = list(range(max((len(c) for c in curves), default=0)))
    means = [mean_interval({str(n): [c[min(s, len(c) - 1)]] for n, c in enumerate(curves)}) for s in steps]
    band = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=steps, y=[m.low for m in means], **band))
    fill = {"fill": "tonexty", "fillcolor": "rgba(79,124,219,0.18)"}
    figure.add_trace(go.Scatter(x=steps, y=[m.high for m in means], **band, **fill))
    line = {"shape": "linear", "width": 2.5, "color": ACCENT}
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=[m.value for m in means],
            mode="lines+markers",
            name=f"mean of {plural(len(curves), 'user')}",
            line=line,
        )
    )
    few = 1 if len(steps) <= 12 else None
    figure.update_xaxes(title_text="challengers tried", dtick=few, rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text="held-out score", range=[-0.03, 1.05])
    return figure


def systems_figure(
    rows: Sequence[tuple[str, float, float, float]], metric: str, costs: Mapping[str, str] | None = None
) -> Any:
    """An evaluation: (system, score, low, high) as dots with their intervals, in the order given.

    Args:
        costs: system -> what it took, in a few words, shown beside its name.
    """
    go, figure = blank(height=220)
    told = {name: f"{name} ({cost})" for name, cost in (costs or {}).items() if cost}
    titled = [(told.get(name, name), Interval(value=value, low=low, high=high), 0) for name, value, low, high in rows]
    _dots(go, figure, titled, [ACCENT if name.startswith("persona") else SAME for name, *_ in rows])
    figure.update_layout(height=max(200, 90 + 28 * len(rows)))
    figure.update_xaxes(title_text=label(metric))
    return figure


_CURVES = {
    "history": "past interactions that are known",
    "recent": "interactions simulated a step",
    "epochs": "steps of alignment",
    "k": "episodes shown",
}
_COLOURS = (ACCENT, BETTER, WORSE, "#c98a1b", "#8e6bbf", "#2aa5c9", SAME)


def option_curves(
    rows: Sequence[tuple[str, float, float, float]], metric: str, defaults: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Cold start and scaling: option -> a figure of score against the option's value, a line a system. An option has
    one where a system has it with two values or more.

    Args:
        rows: (system, score, low, high), the system named as in ``persona@k=4``.
        defaults: option -> the value that a row without it has; such a row of another option is not drawn.

    Example:
        >>> list(option_curves([(f"rag@k={k}", 0.5, 0.4, 0.6) for k in (1, 4)] + [("rag", 0.5, 0.4, 0.6)], "mae"))
        ['k']
    """
    lines: dict[str, dict[str, list[tuple[int, Interval]]]] = {}
    for name, value, low, high in rows:
        system, _, options = name.partition("@")
        parts = options.split(",")
        for part in parts:
            option, _, number = part.partition("=")
            if option in _CURVES and number.isdecimal():
                rest = ",".join(other for other in parts if other != part)
                line = lines.setdefault(option, {}).setdefault(f"{system}@{rest}" if rest else system, [])
                line.append((int(number), Interval(value=value, low=low, high=high)))
    for option, number in (defaults or {}).items():
        for name, value, low, high in rows:
            if name in lines.get(option, {}):
                lines[option][name].append((number, Interval(value=value, low=low, high=high)))
    return {
        option: _option_curve(
            title, {name: sorted(points, key=lambda p: p[0]) for name, points in drawn.items()}, metric
        )
        for option, title in _CURVES.items()
        if (drawn := {name: points for name, points in lines.get(option, {}).items() if len(points) > 1})
    }


def _option_curve(title: str, lines: Mapping[str, Sequence[tuple[int, Interval]]], metric: str) -> Any:
    go, figure = blank(height=260)
    for (name, points), colour in zip(lines.items(), itertools.cycle(_COLOURS)):
        told = [f"{label(name)}, {n:,}: {i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for n, i in points]
        figure.add_trace(
            go.Scatter(
                x=[n for n, _ in points],
                y=[interval.value for _, interval in points],
                mode="lines+markers",
                name=label(name, width=200, most=44),
                line={"width": 2.5, "color": colour},
                marker={"size": 8, "color": colour},
                text=told,
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text=title, rangemode="tozero", showgrid=False)
    figure.update_yaxes(title_text=label(metric))
    return figure


def _dots(go: Any, figure: Any, rows: Sequence[tuple[str, Interval, int]], colours: Sequence[str]) -> None:
    """Rows from top to bottom, each a dot with its interval."""
    names = [label(name, width=200, most=60) for name, *_ in rows]
    for place, (name, interval, users) in enumerate(rows):
        over = f" over {plural(users, 'user')}" if users else ""
        figure.add_trace(
            go.Scatter(
                x=[interval.value],
                y=[place],
                mode="markers",
                marker={"size": 13, "color": colours[place]},
                error_x={
                    "array": [interval.high - interval.value],
                    "arrayminus": [interval.value - interval.low],
                    "thickness": 2.5,
                    "width": 5,
                    "color": colours[place],
                },
                showlegend=False,
                text=[f"{label(name)}: {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]{over}"],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=names, showgrid=False, range=[max(1, len(rows)) - 0.4, -0.6]
    )


def blank(*, height: int) -> tuple[Any, Any]:
    """``plotly.graph_objects`` and an empty figure in the house's style, ``height`` pixels high.

    Raises:
        RunError: the extra is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as missing:
        raise RunError(f"package {missing.name!r}: expected to be installed; {to_install('report')}") from None
    grid = {
        "gridcolor": "rgba(128,138,157,0.22)",
        "zeroline": False,
        "automargin": True,
        "title": {"font": {"size": 13}},
    }
    layout = {
        "template": go.layout.Template(),  # Plotly's own is 7 kB in every figure
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "font": {"family": _FONT, "size": 13, "color": "#3d4757"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left", "font": {"family": _FONT, "size": 13}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "xaxis": dict(grid),
        "yaxis": dict(grid),
    }
    return go, go.Figure(layout=layout)

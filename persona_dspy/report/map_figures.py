"""Plotly figures of how alike personas are: the map and the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_dspy.report.figures import blank, label

__all__ = ["map_figure", "similarity_figure"]

GROUP_COLOURS = ("#4f7cdb", "#e08a3c", "#16a085", "#b565b0", "#a39428", "#d65f5f")
GROUP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def map_figure(
    users: Sequence[str], xy: Sequence[tuple[float, float]], groups: Sequence[int], names: Sequence[str]
) -> Any:
    """A dot a persona, coloured and shaped by group; ``customdata`` holds each user's place in ``users``."""
    go, figure = blank(height=420)
    size = 12 if len(users) <= 60 else 7
    for group, name in enumerate(names):
        members = [i for i, g in enumerate(groups) if g == group]
        figure.add_trace(
            go.Scatter(
                x=[xy[i][0] for i in members],
                y=[xy[i][1] for i in members],
                mode="markers+text" if len(users) <= 16 else "markers",
                text=[label(users[i], width=200, most=24) for i in members],
                textposition="top center",
                name=label(name, width=200, most=40) + f" ({len(members):,})",
                customdata=members,
                marker={
                    "size": size,
                    "opacity": 0.85,
                    "color": GROUP_COLOURS[group % len(GROUP_COLOURS)],
                    "symbol": GROUP_SYMBOLS[group % len(GROUP_SYMBOLS)],
                },
                hovertemplate="%{text}<extra></extra>",
            )
        )
    hidden = {"showticklabels": False, "zeroline": False, "showgrid": False, "showline": False}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden)
    figure.update_layout(showlegend=len(names) > 1)
    return figure


def similarity_figure(users: Sequence[str], matrix: Sequence[Sequence[float]]) -> Any:
    """Jaccard similarity of each pair, darker = more alike; the diagonal is left out, so that the rest can be seen."""
    go, figure = blank(height=420)
    rows = [[None if i == j else round(float(v), 3) for j, v in enumerate(row)] for i, row in enumerate(matrix)]
    top = max((v for row in rows for v in row if v is not None), default=1.0) or 1.0
    names = [label(u, width=200, most=24) for u in users]
    pairs = [[f"{one} and {other}" for other in names] for one in names]
    figure.add_trace(
        go.Heatmap(
            z=rows,
            text=pairs,
            zmin=0,
            zmax=top,
            colorscale=[[0, "rgba(79,124,219,0.04)"], [1, "rgba(79,124,219,1)"]],
            colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.9},
            hovertemplate="%{text}<br>similarity %{z:.2f}<extra></extra>",
            xgap=1 if len(users) <= 30 else 0,
            ygap=1 if len(users) <= 30 else 0,
        )
    )
    axis = {"tickvals": list(range(len(users))), "ticktext": names} if len(users) <= 30 else {"showticklabels": False}
    figure.update_xaxes(**axis, showgrid=False, zeroline=False, tickangle=-60)
    figure.update_yaxes(**axis, showgrid=False, zeroline=False, autorange="reversed", scaleanchor="x")
    return figure

"""Figures for plotly.js. Colours are CSS properties, `var(--ink)`, which the page puts in: light, dark and print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

Figure = dict[str, Any]


class Estimate(NamedTuple):
    """A row of a forest plot: a difference with its 95% interval; `decisive` where it decided the verdict."""

    name: str
    difference: float
    low: float
    high: float
    decisive: bool


def forest(rows: Sequence[Estimate], axis: str) -> Figure:
    """Differences with their intervals against a line at 0, the first row on top."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for decisive, colour, size in ((False, "var(--quiet)", 9), (True, "var(--accent)", 12)):
        chosen = [row for row in rows if row.decisive == decisive]
        if not chosen:
            continue
        figure.add_scatter(
            x=[row.difference for row in chosen],
            y=[escape(row.name) for row in chosen],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row.high - row.difference for row in chosen],
                "arrayminus": [row.difference - row.low for row in chosen],
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
            mode="markers",
            marker={"color": colour, "size": size, "symbol": "diamond" if decisive else "circle"},
            hovertemplate="%{y}<br>%{x:+.2f} points<extra></extra>",
            showlegend=False,
        )
    figure.add_vline(x=0, line={"color": "var(--ink)", "width": 1.5})
    for row in rows:  # above its line, not left of it: a phone has no room there
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=escape(row.name),
            yshift=7,
            yanchor="bottom",
            text=escape(row.name),
            showarrow=False,
        )
    names = [escape(row.name) for row in rows]
    figure.update_yaxes(
        categoryorder="array", categoryarray=names[::-1], range=[-0.5, len(rows) - 0.2], showgrid=False, showticklabels=False
    )
    figure.update_xaxes(title=axis, gridcolor="var(--line)", zeroline=False, tickformat="+~g", tickangle=0, nticks=9)
    return _finish(figure, height=70 + 46 * len(rows))


def losses(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Training loss over steps, one line a curve."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for (name, pairs), colour in zip(
        curves.items(), ("var(--accent)", "var(--good)", "var(--bad)", "var(--quiet)") * len(curves), strict=False
    ):
        figure.add_scatter(
            x=[step for step, _ in pairs],
            y=[loss for _, loss in pairs],
            name=escape(name),
            mode="lines" if len(pairs) > 1 else "markers",
            line={"color": colour, "width": 1.8},
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
            showlegend=len(curves) > 1,
        )
    figure.update_xaxes(title="step", gridcolor="var(--line)", zeroline=False)
    figure.update_yaxes(title="loss", gridcolor="var(--line)", zeroline=False, automargin=True)
    return _finish(figure, height=240)


def _finish(figure: Any, height: int) -> Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "var(--ink)", "size": 13, "family": "system-ui, sans-serif"},
        hoverlabel={"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        dragmode=False,
    )
    plain: Figure = json.loads(figure.to_json())
    return plain

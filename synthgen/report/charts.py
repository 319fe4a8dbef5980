"""Figures of the gain study and of training for plotly.js; those of the gate stand in `gate_charts`.

Colours are CSS properties, `var(--ink)`, which the page puts in: light, dark and print. Names are shortened and escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from synthgen.report.wording import shorten

Figure = dict[str, Any]


class Estimate(NamedTuple):
    """A row of a forest plot: a difference with its 95% interval; `decisive` where it decided the verdict."""

    name: str
    difference: float
    low: float
    high: float
    decisive: bool
    synthetic: bool = False
    meaning: str = ""


class Size(NamedTuple):
    """A point of a learning curve, in percent, with its 95% interval."""

    num_real: int
    accuracy: float
    low: float
    high: float
    source: str


class Worth(NamedTuple):
    """An accuracy in percent, and how many real images would reach it: None where that, or an end, isn't known."""

    name: str
    accuracy: float
    equivalent: float | None = None
    low: float | None = None
    high: float | None = None


MARKS = {"train": "circle", "train and val": "square", "hidden labels": "diamond-open"}
"""Where the images of a point come from, and its mark."""


def forest(rows: Sequence[Estimate], axis: str) -> Figure:
    """Differences with their intervals against a line at 0, the first row on top."""
    import plotly.graph_objects as go

    figure, names = go.Figure(), labels(row.name for row in rows)
    for kind, (colour, size, symbol) in {
        "real": ("var(--quiet)", 9, "circle-open"),
        "synthetic": ("var(--ink)", 9, "square"),
        "decisive": ("var(--accent)", 13, "diamond"),
    }.items():
        chosen = [
            (row, name)
            for row, name in zip(rows, names, strict=True)
            if ("decisive" if row.decisive else "synthetic" if row.synthetic else "real") == kind
        ]
        if not chosen:
            continue
        figure.add_scatter(
            x=[row.difference for row, _ in chosen],
            y=[name for _, name in chosen],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row.high - row.difference for row, _ in chosen],
                "arrayminus": [row.difference - row.low for row, _ in chosen],
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
            mode="markers",
            marker={"color": colour, "size": size, "symbol": symbol, "line": {"color": colour, "width": 2}},
            customdata=[escape(shorten(row.meaning or row.name, 90)) for row, _ in chosen],
            hovertemplate="%{customdata}<br>%{x:+.2f} points<extra></extra>",
            showlegend=False,
        )
    figure.add_vline(x=0, line={"color": "var(--ink)", "width": 1.5})
    crowded = len(rows) > 12
    _name_rows(figure, names, crowded)
    figure.update_xaxes(title=axis, gridcolor="var(--line)", zeroline=False, tickformat="+~g", tickangle=0, nticks=9)
    return finish(figure, height=70 + (42 if crowded else 48) * len(rows))


def labels(names: Iterable[str]) -> list[str]:
    """Names as labels of rows: no markup, short, each one different from the others."""
    found: list[str] = []
    for name in names:
        label = escape(shorten(name))
        found.append(label if label not in found else f"{label} ({len(found) + 1})")
    return found


def _name_rows(figure: Any, names: Sequence[str], crowded: bool) -> None:
    """Each name above its line, not left of it, where a phone has no room, and clear of its mark; the first row on top."""
    for name in names:
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=name,
            yshift=9,
            yanchor="bottom",
            text=name,
            font={"size": 12 if crowded else 13},
            bgcolor="var(--paper)",
            borderpad=0,
            showarrow=False,
        )
    order = list(names[::-1])
    figure.update_yaxes(
        categoryorder="array", categoryarray=order, range=[-0.5, len(names) - 0.2], showgrid=False, showticklabels=False
    )


def learning(sizes: Sequence[Size], fitted: Sequence[tuple[float, float]], best: Worth | None, others: Sequence[Worth]) -> Figure:
    """Accuracy over real images on a log axis: points with intervals, the fit, and what synthetic arms reach.

    Of `best` the equivalent number of real images is marked, and its interval lies as a bar on the axis; an end that isn't
    known lies at the edge.

    Args:
        sizes: ascending; at least one. An interval that goes beyond 0 or 100% is drawn up to there.
        fitted: points of the curve, beyond the sizes too where that was asked for.
        best, others: arms with synthetic images.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    sizes = [size._replace(low=max(size.low, 0.0), high=min(size.high, 100.0)) for size in sizes]
    known = [n for n in (best.equivalent, best.low, best.high) if n is not None and n > 0] if best else []
    left, right = min([sizes[0].num_real, *known]), max([sizes[-1].num_real, *known])
    left, right = left / (right / left) ** 0.06 / 1.1, right * (right / left) ** 0.06 * 1.1
    reached = [worth.accuracy for worth in (best, *others) if worth is not None]
    shown = [*reached, *(size.low for size in sizes), *(size.high for size in sizes)]
    room = max(max(shown) - min(shown), 1.0)
    bottom, top = max(min(shown) - 0.14 * room, 0.0), min(max(shown) + 0.05 * room, 100.0)
    for worth in others:
        figure.add_scatter(
            x=[left, right],
            y=[worth.accuracy] * 2,
            mode="lines",
            line={"color": "var(--quiet)", "width": 1, "dash": "dot"},
            hovertemplate=f"{escape(shorten(worth.name))}: %{{y:.2f}}%<extra></extra>",
        )
    inside = [pair for pair in fitted if sizes[0].num_real <= pair[0] <= sizes[-1].num_real]
    for pairs, dash in ((inside, "solid"), (fitted, "dash")):
        if len(pairs) > 1 and (dash == "solid" or len(fitted) > len(inside)):
            figure.add_scatter(
                x=[n for n, _ in pairs],
                y=[accuracy for _, accuracy in pairs],
                mode="lines",
                line={"color": "var(--soft)", "width": 1.6, "dash": dash},
                hoverinfo="skip",
            )
    for source in dict.fromkeys(size.source for size in sizes):
        chosen = [size for size in sizes if size.source == source]
        figure.add_scatter(
            x=[size.num_real for size in chosen],
            y=[size.accuracy for size in chosen],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [size.high - size.accuracy for size in chosen],
                "arrayminus": [size.accuracy - size.low for size in chosen],
                "color": "var(--ink)",
                "thickness": 1.5,
                "width": 4,
            },
            mode="markers",
            marker={"color": "var(--ink)", "size": 9, "symbol": MARKS.get(source, "x"), "line": {"width": 2}},
            cliponaxis=False,  # a point at 100% is drawn whole
            hovertemplate=f"%{{x}} real images ({escape(shorten(source))}): %{{y:.2f}}%<extra></extra>",
        )
    if best is not None:
        _mark_worth(figure, best, left, right, bottom + 0.035 * room, bottom)
    ticks = _apart([size.num_real for size in sizes], right / left)
    figure.update_xaxes(
        type="log",
        title="labelled real images (log scale)",
        range=[math.log10(left), math.log10(right)],
        tickvals=ticks,
        ticktext=[f"{n:,}" for n in ticks],
        gridcolor="var(--line)",
        zeroline=False,
    )
    figure.update_yaxes(title="test accuracy", range=[bottom, top], ticksuffix="%", gridcolor="var(--line)", zeroline=False)
    figure.update_layout(showlegend=False)
    return finish(figure, height=400, left=64)


def _mark_worth(figure: Any, best: Worth, left: float, right: float, bar: float, bottom: float) -> None:
    """The arm's accuracy as a line, n' where the curve reaches it, and the interval of n' on the axis."""
    accent = "var(--accent)"
    said = f"{escape(shorten(best.name))}: %{{y:.2f}}%<extra></extra>"
    line = {"color": accent, "width": 2, "dash": "dash"}
    figure.add_scatter(x=[left, right], y=[best.accuracy] * 2, mode="lines", line=line, hovertemplate=said)
    if best.low is not None or best.high is not None or best.equivalent is not None:
        figure.add_scatter(
            x=[best.low or left, best.high or right],
            y=[bar] * 2,
            mode="lines",
            line={"color": accent, "width": 7},
            opacity=0.55,
            hovertemplate="95% interval of the equivalent: %{x:.0f}<extra></extra>",
        )
    if best.equivalent is not None:
        figure.add_scatter(
            x=[best.equivalent] * 2, y=[best.accuracy, bottom], mode="lines",
            line={"color": accent, "width": 1.5, "dash": "dot"}, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=[best.equivalent] * 2,
            y=[best.accuracy, bar],
            mode="markers",
            marker={"color": accent, "size": [12, 9], "symbol": ["star", "diamond"]},
            hovertemplate="worth %{x:.0f} real images<extra></extra>",
        )
        figure.add_annotation(
            x=math.log10(best.equivalent), y=bar, yshift=8, yanchor="bottom", showarrow=False,
            text=f"n\u2032 = {best.equivalent:,.0f}", font={"color": accent, "size": 13}, bgcolor="var(--paper)",
        )  # fmt: skip


def _apart(sizes: Sequence[int], span: float) -> list[int]:
    """Those of the sizes whose labels have room beside each other on a log axis, the largest always."""
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or math.log(kept[-1] / size) > 0.09 * math.log(span):
            kept.append(size)
    return kept[::-1]


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
            name=escape(shorten(name)),
            mode="lines" if len(pairs) > 1 else "markers",
            line={"color": colour, "width": 1.8},
            hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
            showlegend=len(curves) > 1,
        )
    figure.update_xaxes(title="step", gridcolor="var(--line)", zeroline=False)
    figure.update_yaxes(title="loss", gridcolor="var(--line)", zeroline=False)
    return finish(figure, height=240, left=64)


def finish(figure: Any, height: int, top: int = 8, left: int = 8) -> Figure:
    """A figure as plain JSON, in the page's type and without what plotly.js can do by itself."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": left, "r": 16, "t": top, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "var(--ink)", "size": 13, "family": "system-ui, sans-serif"},
        hoverlabel={"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        dragmode=False,
    )
    plain: Figure = json.loads(figure.to_json())
    return plain

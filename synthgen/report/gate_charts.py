"""Figures of the gate for plotly.js: how much of each limit is used up, and the planes of precision and recall.

Colours as in `charts`; generators are told apart by the shape of their marks too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from synthgen.report.charts import Figure, finish, labels
from synthgen.report.wording import MINUS, num, shorten, words

MARKS = (
    ("var(--accent)", "diamond"), ("var(--ink)", "circle"), ("var(--good)", "square"), ("var(--bad)", "triangle-up"),
    ("var(--unsure)", "cross"), ("var(--quiet)", "star"),
)  # fmt: skip
MOST = 3.0
"""Shares of a limit are drawn up to here; what lies beyond stands at the edge, and its mark says so."""


class Share(NamedTuple):
    """An excess as a share of its limit, with its 95% interval."""

    name: str
    value: float
    low: float
    high: float


class Axis(NamedTuple):
    """One coordinate of a generator.

    Attributes:
        value, low, high: of the generator, with the 95% interval of its difference to real images.
        reference: real against real.
        real: 95% of splits of real images lie between these.
        bound: the limit on the value, None without one.
    """

    value: float
    low: float
    high: float
    reference: float
    real: tuple[float, float]
    bound: float | None


class Point(NamedTuple):
    """A generator in a plane of two metrics."""

    name: str
    x: Axis
    y: Axis


def marks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Generator -> colour and shape of its mark, the same in every figure."""
    return {name: MARKS[number % len(MARKS)] for number, name in enumerate(names)}


def limits(generators: Mapping[str, Sequence[Share]]) -> Figure:
    """Every metric with a limit, a mark a generator: 0 is as real images, 1 the limit, the first row on top."""
    import plotly.graph_objects as go

    figure, looks = go.Figure(), marks(list(generators))
    metrics = list(dict.fromkeys(share.name for shares in generators.values() for share in shares))
    for number, (name, shares) in enumerate(generators.items()):
        colour, symbol = looks[name]
        below = 0.08 if len(generators) == 1 else 0.3 * number / (len(generators) - 1) - 0.04
        ends = [[min(max(value, -1.0), MOST) for value in share[1:]] for share in shares]
        line = {"color": colour, "width": 2}
        figure.add_scatter(
            x=[value for value, _, _ in ends],
            y=[len(metrics) - 1 - metrics.index(share.name) - below for share in shares],
            error_x=_error([(value, low, high) for value, low, high in ends], colour),
            mode="markers",
            marker={
                "color": colour,
                "size": 8,
                "symbol": ["triangle-right-open" if share.value > MOST else symbol for share in shares],
                "line": line,
            },
            customdata=[
                f"{escape(shorten(name))}, {words(share.name)}: {num(share.value, 3)} of the limit "
                f"({num(share.low, 3)} to {num(share.high, 3)})"
                for share in shares
            ],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=escape(shorten(name, 24)),
            marker={"color": colour, "size": 9, "symbol": symbol, "line": line},
        )  # fmt: skip
    for x, dash in ((0, "dot"), (1, "solid")):
        figure.add_vline(x=x, line={"color": "var(--ink)" if x == 0 else "var(--bad)", "width": 1.5, "dash": dash})
    for row, label in enumerate(labels(words(metric) for metric in metrics)):
        place = len(metrics) - 1 - row
        if row:
            figure.add_hline(y=place + 0.52, line={"color": "var(--line)", "width": 1}, layer="below")
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=place, yshift=6, yanchor="bottom", text=label,
            font={"size": 13}, bgcolor="var(--paper)", borderpad=0, showarrow=False,
        )  # fmt: skip
    figure.update_yaxes(range=[-0.5, len(metrics) - 0.45], showgrid=False, showticklabels=False, zeroline=False)
    figure.update_xaxes(
        title="excess, as a share of its limit",
        gridcolor="var(--line)", zeroline=False, range=[-1.1, MOST + 0.25],
        tickvals=[-1, 0, 1, 2, MOST], ticktext=[f"{MINUS}1", "as real", "limit", "twice", f"{MOST:g} times"],
    )  # fmt: skip
    figure.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "font": {"size": 13}})
    return finish(figure, height=120 + 56 * len(metrics), top=40)


def plane(points: Sequence[Point], x: str, y: str, looks: Mapping[str, tuple[str, str]]) -> Figure:
    """Two metrics against each other: a mark a generator with its 95% intervals, real images, and what the limits allow.

    Args:
        points: at least one, the chosen generator first.
        x, y: names of the metrics.
        looks: of the marks, see `marks`.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    bounds = (points[0].x.bound, points[0].y.bound)
    across, up = _range([point.x for point in points], bounds[0]), _range([point.y for point in points], bounds[1])
    if any(bound is not None for bound in bounds):
        figure.add_shape(
            type="rect", x0=across[0] if bounds[0] is None else bounds[0], x1=across[1],
            y0=up[0] if bounds[1] is None else bounds[1], y1=up[1],
            line={"color": "var(--good)", "width": 1, "dash": "dot"}, fillcolor="var(--good)", opacity=0.12, layer="below",
        )  # fmt: skip
    figure.add_scatter(
        x=[point.x.reference for point in points],
        y=[point.y.reference for point in points],
        error_x=_error([(point.x.reference, *point.x.real) for point in points], "var(--quiet)"),
        error_y=_error([(point.y.reference, *point.y.real) for point in points], "var(--quiet)"),
        mode="markers",
        name="real against real",
        marker={"color": "var(--quiet)", "size": 9, "symbol": "circle-open", "line": {"color": "var(--quiet)", "width": 2}},
        hovertemplate=f"real against real: {x} %{{x:.3f}}, {y} %{{y:.3f}}<extra></extra>",
    )
    for point in points:
        colour, symbol = looks[point.name]
        name = escape(shorten(point.name, 24))
        figure.add_scatter(
            x=[point.x.value],
            y=[point.y.value],
            error_x=_error([point.x[:3]], colour),
            error_y=_error([point.y[:3]], colour),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 11, "symbol": symbol, "line": {"color": colour, "width": 2}},
            hovertemplate=f"{name}: {x} %{{x:.3f}}, {y} %{{y:.3f}}<extra></extra>",
        )
    figure.update_xaxes(title=x, range=across, gridcolor="var(--line)", zeroline=False, nticks=6)
    figure.update_yaxes(title=y, range=up, gridcolor="var(--line)", zeroline=False, nticks=6)
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}})
    return finish(figure, height=380, top=64, left=60)


def _range(axes: Sequence[Axis], bound: float | None) -> list[float]:
    """From a little below the lowest figure or limit to a little above the highest."""
    shown = [value for axis in axes for value in (axis.value, axis.low, axis.high, *axis.real)] + [1.0]
    low, high = min(shown if bound is None else [*shown, bound]), max(shown)
    room = 0.08 * max(high - low, 0.1)
    return [low - room, high + room]


def _error(ends: Sequence[tuple[float, ...]], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - value, 0.0) for value, _, high in ends],
        "arrayminus": [max(value - low, 0.0) for value, low, _ in ends],
        "color": colour,
        "thickness": 1.6,
        "width": 3,
    }

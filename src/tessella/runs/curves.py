"""The curves of a run: a metric over images seen, laid out as a drawing.

Points become positions on a drawing of WIDTH × HEIGHT, which `run.html.jinja` writes as SVG: its
colours follow the page, and its text stays text.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessella.runs.record import Points

WIDTH, HEIGHT = 360, 205
LEFT, RIGHT, TOP, BOTTOM = 50, 348, 10, 175
"""Where the axes are."""

_MAX_POINTS = 400
_LEVEL = 0.01  # of a curve's range: smaller changes count as level
_LOG_FROM = 8.0  # largest value over median: above it a linear axis shows only the start


@dataclass(frozen=True)
class Mark:
    """A position on the drawing with a label."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line of a curve."""

    name: str  # training, validation
    points: str  # of a polyline
    values: str  # images:value for each point, to be read out
    marks: Sequence[Mark]  # the points that get a dot


@dataclass(frozen=True)
class Curve:
    """A drawing of one metric over images seen."""

    title: str
    hint: str  # what it measures, and which direction is better
    description: str  # in words, for people who cannot see it
    lines: Mapping[str, Line]  # train, validation
    x_ticks: Sequence[Mark]
    y_ticks: Sequence[Mark]
    is_log: bool


def draw_curve(
    title: str,
    hint: str,
    values: Mapping[str, Points],
    names: Mapping[str, str],
    *,
    from_zero: bool = False,
) -> Curve:
    """Chooses the axes of one metric and lays out its values, averaging if there are too many.

    Args:
        title: heading.
        hint: what the metric says.
        values: of train and validation, or of one of them; at least one value each.
        names: what the page calls them.
        from_zero: whether the axis begins at 0, so that small changes look small.
    """
    points = {kind: _thin(series) for kind, series in values.items()}
    everything = [value for series in points.values() for _, value in series]
    least, most = min(everything), max(everything)
    is_log = least > 0 and most > _LOG_FROM * statistics.median(everything) and not from_zero
    scale = math.log10 if is_log else float
    low, high = _widen(scale(0.0 if from_zero else least), scale(most))
    furthest = max(images_seen for series in points.values() for images_seen, _ in series) or 1
    ticks = [10**tick for tick in _log_ticks(low, high)] if is_log else compute_ticks(low, high)

    def place(images_seen: float, value: float, label: str = "") -> Mark:
        x = LEFT + (RIGHT - LEFT) * images_seen / furthest
        y = BOTTOM - (BOTTOM - TOP) * (scale(value) - low) / (high - low)
        return Mark(round(x, 1), round(y, 1), label)

    def draw(kind: str, series: Points) -> Line:
        marks = [place(at, value, f"{at:,} images: {shorten(value)}") for at, value in series]
        return Line(
            name=names[kind],
            points=" ".join(f"{mark.x},{mark.y}" for mark in marks),
            values=" ".join(f"{at}:{value:.4g}" for at, value in series),
            # A line of one point is invisible.
            marks=marks if kind == "validation" or len(marks) == 1 else (),
        )

    top = 10**high if is_log else high
    return Curve(
        title=title,
        hint=hint,
        description=" ".join(_describe(names[kind], series) for kind, series in points.items()),
        lines={kind: draw(kind, series) for kind, series in points.items()},
        x_ticks=[place(tick, top, shorten(tick)) for tick in compute_ticks(0, furthest)],
        y_ticks=[place(0, tick, shorten(tick)) for tick in ticks],
        is_log=is_log,
    )


def compute_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Chooses round values in [low, high], spaced 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * by for by in (1, 2, 5, 10) if (high - low) / (power * by) <= count)
    # The slack keeps a limit that is a multiple of the step from being rounded away.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def shorten(value: float) -> str:
    """Formats a number for a tick: 0.25, 12.5, 1,200, 15 k, 2.5 M."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * unit or (unit == 1e6 and abs(value) >= unit):
            return f"{value / unit:.4g}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thin(points: Points) -> list[tuple[int, float]]:
    """Averages neighbours if there are more points than can be seen."""
    size = math.ceil(len(points) / _MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def _widen(low: float, high: float) -> tuple[float, float]:
    """Leaves a margin around the values, around a constant too."""
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    """Chooses whole exponents, and those of 2 and 5 between them if the range is short."""
    whole = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 2 else (1, 2, 5)
    exponents = [power + math.log10(by) for power in whole for by in factors]
    return [exponent for exponent in exponents if low <= exponent <= high]


def _describe(name: str, points: Points) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    if first == last:
        return f"{name}: {shorten(end)} at {last:,} images."
    values = [value for _, value in points]
    least, most = min(values), max(values)
    return (
        f"{name}: from {shorten(begin)} at {first:,} images to {shorten(end)} at {last:,}; "
        f"lowest {shorten(least)}, highest {shorten(most)}; recently {_describe_trend(values)}."
    )


def _describe_trend(values: Sequence[float]) -> str:
    """Compares the last eighth of a curve with the eighth before it."""
    size = max(1, len(values) // 8)
    before, after = values[-2 * size : -size], values[-size:]
    change = statistics.fmean(after) - statistics.fmean(before)
    if abs(change) <= _LEVEL * (max(values) - min(values)):
        return "level"
    return "falling" if change < 0 else "rising"

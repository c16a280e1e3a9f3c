"""Curves of a run: values over images seen with their axes, and as places on a drawing.

The pages draw them as SVG, so that colours follow the page and text stays text.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessella.runs.record import Points

WIDTH, HEIGHT = 360, 205
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 348, 10, 175
_MAX_POINTS = 400
_LEVEL = 0.01  # of what a curve spans: a smaller change is none
_LOG_FROM = 8.0  # largest value over median: above, a linear axis shows little but the start


@dataclass(frozen=True)
class Tick:
    """A place on an axis, with its words."""

    value: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One metric over images seen, with its axes."""

    title: str
    hint: str  # what it says, and which way is better
    description: str  # in words, for those who do not see it
    points: Mapping[str, Points]  # train, validation → values, few enough to be seen
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    limits: tuple[float, float]  # of the value axis; above 0 if is_log
    furthest: int  # images seen, where the other axis ends
    is_log: bool


@dataclass(frozen=True)
class Mark:
    """One value, with its words."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A drawing of WIDTH × HEIGHT with one metric in it."""

    title: str
    hint: str  # what it says, and which way is better
    description: str  # in words, for those who do not see it
    lines: Mapping[str, str]  # train, validation → the points of a polyline
    marks: Sequence[Mark]  # each value of the validation
    x_ticks: Sequence[Mark]
    y_ticks: Sequence[Mark]
    is_log: bool


def create_chart(
    title: str,
    hint: str,
    values: Mapping[str, Points],
    names: Mapping[str, str],
    *,
    from_zero: bool = False,
) -> Chart:
    """Chooses the axes of one metric, and joins values where there are more than can be seen.

    Args:
        title: heading.
        hint: what it says.
        values: train and validation, or one of them; at least one value each.
        names: what the page calls them.
        from_zero: whether the axis begins at 0, so that small changes look small.
    """
    points = {kind: _thin(found) for kind, found in values.items()}
    everything = [value for found in points.values() for _, value in found]
    least, most = min(everything), max(everything)
    is_log = least > 0 and most > _LOG_FROM * statistics.median(everything) and not from_zero
    scale = math.log10 if is_log else float
    low, high = _widen(scale(0.0 if from_zero else least), scale(most))
    furthest = max(at for found in points.values() for at, _ in found) or 1
    ticks = [10**tick for tick in _log_ticks(low, high)] if is_log else compute_ticks(low, high)
    return Chart(
        title=title,
        hint=hint,
        description=" ".join(_describe(names[kind], found) for kind, found in points.items()),
        points=points,
        x_ticks=[Tick(tick, shorten(tick)) for tick in compute_ticks(0, furthest)],
        y_ticks=[Tick(tick, shorten(tick)) for tick in ticks],
        limits=(10**low, 10**high) if is_log else (low, high),
        furthest=furthest,
        is_log=is_log,
    )


def draw_curve(chart: Chart) -> Curve:
    """Lays out one metric."""
    scale = math.log10 if chart.is_log else float
    low, high = map(scale, chart.limits)

    def place(at: float, value: float) -> tuple[float, float]:
        across = _LEFT + (_RIGHT - _LEFT) * at / chart.furthest
        up = (scale(value) - low) / (high - low)
        return round(across, 1), round(_BOTTOM - (_BOTTOM - _TOP) * up, 1)

    top = chart.limits[1]
    return Curve(
        title=chart.title,
        hint=chart.hint,
        description=chart.description,
        lines={
            kind: " ".join(",".join(map(str, place(*point))) for point in found)
            for kind, found in chart.points.items()
        },
        marks=[
            Mark(*place(at, value), f"{at:,} images: {shorten(value)}")
            for at, value in chart.points.get("validation", ())
        ],
        x_ticks=[Mark(place(tick.value, top)[0], _BOTTOM, tick.label) for tick in chart.x_ticks],
        y_ticks=[Mark(_LEFT, place(0, tick.value)[1], tick.label) for tick in chart.y_ticks],
        is_log=chart.is_log,
    )


def compute_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Chooses round values in [low, high], a step of 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * by for by in (1, 2, 5, 10) if (high - low) / (power * by) <= count)
    # Some slack: a limit that is a multiple of the step must not be lost to rounding.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def shorten(value: float) -> str:
    """Writes a number as short as a tick needs it: 0.25, 12.5, 1,200, 15 k, 2.5 M."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * unit or (unit == 1e6 and abs(value) >= unit):
            return f"{value / unit:.4g}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _thin(points: Points) -> list[tuple[int, float]]:
    """Joins neighbours to their mean where there are more than can be seen."""
    share = math.ceil(len(points) / _MAX_POINTS)
    parts = [points[start : start + share] for start in range(0, len(points), share)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def _widen(low: float, high: float) -> tuple[float, float]:
    """Leaves some air around the values; around a constant too."""
    air = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _log_ticks(low: float, high: float) -> list[float]:
    """Chooses exponents: whole ones, and if these are few also those of 2 and 5 between."""
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
        f"lowest {shorten(least)}, highest {shorten(most)}; lately {_describe_trend(values)}."
    )


def _describe_trend(values: Sequence[float]) -> str:
    """Compares the last eighth of a curve with the eighth before it."""
    some = max(1, len(values) // 8)
    before, after = values[-2 * some : -some], values[-some:]
    change = statistics.fmean(after) - statistics.fmean(before)
    if abs(change) <= _LEVEL * (max(values) - min(values)):
        return "level"
    return "falling" if change < 0 else "rising"

"""The chart of costs by month or day, as numbers for an SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from cng_portal.common import money

from .models import ServiceKind
from .summary import Costs


@dataclass(frozen=True, kw_only=True)
class ChartSize:
    """Sizes in the units of the SVG. `left` is the width of the amounts; at most so many bars have a label."""

    width: int
    height: int
    left: int
    month_labels: int
    day_labels: int


WIDE = ChartSize(width=1120, height=180, left=96, month_labels=12, day_labels=15)
NARROW = ChartSize(width=300, height=180, left=80, month_labels=6, day_labels=4)
CHART_TOP, CHART_FOOT, CHART_RIGHT = 12, 28, 8
HALF_LABEL = 20  # of "30 Nov", which would leave the picture


@dataclass(frozen=True, kw_only=True)
class Bar:
    x: str
    y: str
    width: str
    height: str
    kind: str
    title: str


def nice_ceiling(micro: int) -> int:
    """Return the next amount up with short quarters, for the top of the axis: 12, 16, 20, 24, 30 … 100."""
    step = money.MICRO
    while True:
        for factor in (10, 12, 16, 20, 24, 30, 40, 50, 60, 80):
            if factor * step // 10 >= micro:
                return factor * step // 10
        step *= 10


def build_chart(
    *, periods: Sequence[date], costs: Costs, currency: str, label: Callable[[date], str], size: ChartSize, labels: int
) -> dict[str, Any]:
    """Return stacked bars, one a month or day, as numbers for an SVG. `label` formats one of them."""
    totals = {period: sum(max(0, costs.get((period, kind), 0)) for kind in ServiceKind.values) for period in periods}
    top = nice_ceiling(max(totals.values(), default=0))
    plot_height, plot_width = size.height - CHART_TOP - CHART_FOOT, size.width - size.left - CHART_RIGHT
    pitch = plot_width / len(periods)
    apart = -(-len(periods) // labels)
    bottom = CHART_TOP + plot_height
    bars, ticks = [], []
    for number, period in enumerate(periods):
        y = float(bottom)
        x = size.left + number * pitch + pitch * 0.18
        if (len(periods) - 1 - number) % apart == 0:  # always the last one
            middle = min(x + pitch * 0.32, size.width - HALF_LABEL)
            ticks.append({"x": f"{middle:.1f}", "label": label(period)})
        for kind in ServiceKind:
            micro = max(0, costs.get((period, kind.value), 0))
            if not micro:
                continue
            height = plot_height * micro / top
            y -= height
            bars.append(
                Bar(
                    x=f"{x:.1f}",
                    y=f"{y:.2f}",
                    width=f"{pitch * 0.64:.1f}",
                    height=f"{height:.2f}",
                    kind=kind.value,
                    title=f"{label(period)}, {kind.label}: {money.format_amount(micro, currency)}",
                )
            )
    # Without decimals where no line needs them: a long label would leave the picture.
    format_line = money.format_whole if top % (4 * money.MICRO) == 0 else money.format_amount
    lines = [
        {"y": f"{bottom - plot_height * part / 4:.1f}", "label": format_line(top * part // 4, currency)}
        for part in range(5)
    ]
    return {
        "bars": bars,
        "ticks": ticks,
        "lines": lines,
        "width": size.width,
        "height": size.height,
        "left": size.left,
        "right": size.width - CHART_RIGHT,
        "label_x": size.left - 8,
        "label_y": size.height - 8,
    }

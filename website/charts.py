"""Small charts as SVG in a page, in its own colours: they follow light and dark, and each of their points can be asked what it is."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 44
FAR = 8
SERIES = 6  # as many looks the style sheet has
SHAPES = (  # around 0, 0; each series has one, so that none is known by its colour alone
    '<circle r="5"/>',
    '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    '<path d="M0-6 6 0 0 6-6 0Z"/>',
    '<path d="M0-5.5 5.5 4.5H-5.5Z"/>',
    '<path d="M0 5.5 5.5-4.5H-5.5Z"/>',
    '<path d="M-1.8-5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5V-1.8H-1.8Z"/>',
)


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    about: str = ""  # in words; shown when it is pointed at
    href: str = ""


def chart(series: Mapping[str, Sequence[Point]], x: str, y: str, alt: str, lines: bool = False) -> str:
    """HTML of a chart with its legend. series: by label. lines: joins the points, and draws no marks; without, x is
    logarithmic where it goes far.
    """
    points = [point for of in series.values() for point in of]
    far = not lines and min(p.x for p in points) * FAR < max(p.x for p in points)
    xs = _log_ticks([p.x for p in points]) if far else _ticks([p.x for p in points])
    ys = _ticks([p.y for p in points])
    scale: Callable[[float], float] = math.log10 if far else float

    def place(point: Point) -> tuple[float, float]:
        across = (scale(point.x) - scale(xs[0])) / (scale(xs[-1]) - scale(xs[0]))
        up = (point.y - ys[0]) / (ys[-1] - ys[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<g class="axis"><path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,.10g}</text></g>'
        for tick in ys
        for at in [place(Point(xs[0], tick))[1]]
    ]
    parts += [
        f'<g class="axis"><text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,.10g}</text></g>'
        for tick in xs
        for at in [place(Point(tick, ys[0]))[0]]
    ]
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(x)}</text>')
    parts.append(
        f'<text class="label" transform="translate(14 {TOP}) rotate(-90)" text-anchor="end">{html.escape(y)}</text>'
    )
    for i, of in enumerate(series.values()):
        places = [place(point) for point in of]
        if lines:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path class="line series{i % SERIES}" d="M{path}"/>')
        else:
            parts += [_mark(point, at, i) for point, at in zip(of, places)]
    legend = "".join(f"<li>{_key(i, lines)} {html.escape(label)}</li>" for i, label in enumerate(series))
    role = "img" if lines else "group"
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="{role}" aria-label="{html.escape(alt)}">'
        f"{''.join(parts)}</svg><ul>{legend}</ul></figure>"
    )


def _mark(point: Point, at: tuple[float, float], series: int) -> str:
    about = html.escape(point.about)
    return (
        f'<a class="mark series{series % SERIES}" href="{html.escape(point.href)}" aria-label="{about}" data-about="{about}">'
        f'<g transform="translate({at[0]:.1f} {at[1]:.1f})"><title>{about}</title>{SHAPES[series % SERIES]}</g></a>'
    )


def _key(series: int, line: bool) -> str:
    drawn = '<path class="line" d="M-11 0H11"/>' if line else SHAPES[series % SERIES]
    return f'<svg class="key series{series % SERIES}" viewBox="-12 -8 24 16" aria-hidden="true">{drawn}</svg>'


def _ticks(values: list[float]) -> list[float]:
    """Round numbers that enclose the values, some five of them."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - 1, high + 1
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(values: list[float]) -> list[float]:
    """1, 2, 5, 10 and so on, from the last below the values to the first above them."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(i for i, tick in enumerate(ticks) if tick <= low)
    last = min(i for i, tick in enumerate(ticks) if tick >= high)
    return [round(tick, 12) for tick in ticks[first : last + 1]]

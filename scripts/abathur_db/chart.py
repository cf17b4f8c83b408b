"""Charts as inline SVG, small and quiet: a line over time with its scale, its limit and its gaps.

Made by hand, because no library fits: pygal reads its style sheets from files, which a zip application does
not have, writes fixed colours, and leaves an empty script element. Here colours are the page's CSS variables,
so a chart follows light and dark; and all text is HTML beside the SVG, so it keeps its size on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape

Point = tuple[float, float]
"""Seconds since 1970, and a value."""

YOUNG = 3600
"""Seconds that the axis of a chart with one measurement shows."""

GAP = 4
"""A pause this many times the usual distance of two points breaks the line: nothing was measured there."""


def ceiling(value: float) -> float:
    """Return the nearest "round" number at or above a value: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if value <= step * power * 1.000001)


def pieces(points: Sequence[Point]) -> list[list[Point]]:
    """Split a course where nothing was measured for long."""
    distances = sorted(after[0] - before[0] for before, after in itertools.pairwise(points))
    usual = distances[len(distances) // 2] if distances else 0
    found: list[list[Point]] = []
    for point in points:
        if not found or point[0] - found[-1][-1][0] > GAP * usual:
            found.append([])
        found[-1].append(point)
    return found


def span(points: Sequence[Point]) -> Point:
    """Return the first and the last moment of a course; of one measurement, an hour about it."""
    begin, end = points[0][0], points[-1][0]
    return (begin, end) if end > begin else (begin - YOUNG / 2, end + YOUNG / 2)


def day(moment: float) -> str:
    """Return a moment as a label of the time axis: 24 Nov."""
    stamp = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=moment)
    return f"{stamp.day} {stamp:%b}"


def _shapes(points: Sequence[Point], begin: float, end: float, top: float, *, area: bool) -> str:
    def place(point: Point) -> str:
        across = 100 * (point[0] - begin) / max(end - begin, 1)
        return f"{across:.2f},{100 - 100 * point[1] / top:.2f}"

    drawn = []
    for piece in pieces(points):
        # A lone point would be a line without length; it is drawn as one of a hundredth of the width, inside of it.
        middle, half = piece[0][0], (end - begin) / 200
        lone = [(max(begin, middle - half), piece[0][1]), (min(end, middle + half), piece[0][1])]
        spread = piece if len(piece) > 1 else lone
        line = " L".join(place(point) for point in spread)
        if area:
            floor = f"L{place((spread[-1][0], 0))} L{place((spread[0][0], 0))}Z"
            drawn.append(f'<path class="area" d="M{line} {floor}"/>')
        drawn.append(f'<path class="line" d="M{line}"/>')
    return "".join(drawn)


def _svg(content: str, label: str, kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 100 100" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(label)}">{content}</svg>'
    )


def _level(value: float, top: float, kind: str) -> str:
    height = 100 - 100 * value / top
    return f'<path class="{kind}" d="M0,{height:.2f} L100,{height:.2f}"/>'


def line(
    title: str,
    points: Sequence[Point],
    readable: Callable[[float], str],
    *,
    limit: float | None = None,
    limit_name: str = "limit",
    note: str = "",
) -> str:
    """Return a figure: title, newest value, course since the first point, and the limit when it is in sight.

    `readable` writes a value with its unit. A limit far above every value (five times) is said, not drawn:
    it would press the course flat.
    """
    last, most = points[-1][1], max(value for _, value in points)
    drawn = limit is not None and limit <= 5 * max(most, 1e-9)
    top = ceiling(max(most, limit if drawn and limit is not None else 0) * 1.02)
    begin, end = span(points)
    said = f", {limit_name} {readable(limit)}" if limit is not None else ""
    label = f"{title}: {readable(last)} now, at most {readable(most)} since {day(begin)}{said}"
    content = "".join(_level(top * part, top, "grid") for part in (0, 0.5, 1))
    content += _shapes(points, begin, end, top, area=True)
    mark = ""
    if drawn and limit is not None:
        content += _level(limit, top, "limit")
        place = 100 - 100 * limit / top
        mark = f'<span class="mark" style="top:{place:.1f}%">{escape(limit_name)} {escape(readable(limit))}</span>'
    scale = "".join(
        f'<span style="top:{100 - 100 * part:.0f}%">{escape(readable(top * part))}</span>' for part in (0, 0.5, 1)
    )
    days = "".join(f"<span>{day(begin + (end - begin) * part / 3)}</span>" for part in range(4))
    remark = note or said.removeprefix(", ")
    if len(points) == 1:
        remark = "one measurement so far" + (f"; {remark}" if remark else "")
    return (
        f'<figure><figcaption><span class="name">{escape(title)}</span> <b>{escape(readable(last))}</b>'
        f' <span class="note">{escape(remark)}</span></figcaption>'
        f'<div class="plot"><div class="scale" aria-hidden="true">{scale}</div>'
        f'<div class="field">{_svg(content, label, "chart")}{mark}</div></div>'
        f'<div class="days" aria-hidden="true">{days}</div></figure>'
    )


def spark(points: Sequence[Point], limit: float, label: str) -> str:
    """Return a course as small as a word, with its limit dashed at the top."""
    top = max(limit, *(value for _, value in points)) * 1.1
    content = _level(limit, top, "limit") + _shapes(points, *span(points), top, area=False)
    return _svg(content, label, "spark")

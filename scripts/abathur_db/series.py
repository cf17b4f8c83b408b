"""The table metrics as courses over time, thinned in SQL: 90 days at five minutes become some 160 points each."""

from __future__ import annotations

import sqlite3
from typing import Any

from abathur_db import foreign

POINTS = 160
"""Points of a course: as many as a chart on a wide screen can show, few enough to read at a glance."""

SECONDS = "seconds BETWEEN 0 AND 253370764800"
"""From 1970 to 9998: what Python makes a date of. A text that is no time is NULL, and so is left out as well."""

# One pass by idx_metrics_name_timestamp. Timestamps come in two spellings (schema facts, trap 14), so they are
# compared as seconds.
THINNED = f"""
SELECT labels, avg(seconds), min(metric_value), avg(metric_value), max(metric_value)
FROM (SELECT labels, metric_value, CAST(strftime('%s', timestamp) AS INTEGER) AS seconds
      FROM metrics WHERE metric_name = :name AND metric_value {foreign.COUNTABLE})
WHERE {SECONDS}
GROUP BY labels, (seconds - :begin) / :width
ORDER BY labels, 2
"""

SPAN = f"""
SELECT min(seconds), max(seconds)
FROM (SELECT CAST(strftime('%s', timestamp) AS INTEGER) AS seconds
      FROM metrics WHERE metric_name = :name AND metric_value {foreign.COUNTABLE})
WHERE {SECONDS}
"""


def courses(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return each metric by name and labels, with points of [seconds since 1970, minimum, mean, maximum]."""
    named = "SELECT DISTINCT metric_name FROM metrics WHERE typeof(metric_name) = 'text' ORDER BY 1"
    names = [name for (name,) in connection.execute(named)]
    spans = [connection.execute(SPAN, {"name": name}).fetchone() for name in names]
    moments = [moment for span in spans for moment in span if moment is not None]
    if not moments:
        return []
    begin, end = min(moments), max(moments)
    width = max((end - begin) // POINTS + 1, 1)
    found: list[dict[str, Any]] = []
    for name in names:
        last: dict[str, Any] = {}
        for labels, *point in connection.execute(THINNED, {"name": name, "begin": begin, "width": width}):
            if not last or last["raw"] != labels:
                last = {"name": name, "raw": labels, "labels": _labels(labels), "points": []}
                found.append(last)
            last["points"].append([int(point[0]), *(float(f"{each:.6g}") for each in point[1:])])
    for course in found:
        del course["raw"]
    return found


def _labels(text: str | None) -> dict[str, str]:
    """Return labels as the collector writes them; anything else, which somebody else wrote, as one label."""
    try:
        found = foreign.value(text or "{}")
    except ValueError:
        found = text
    if not isinstance(found, dict):
        found = {"labels": found}
    return {str(name): str(each) for name, each in found.items()}

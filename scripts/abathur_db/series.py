"""The table metrics as courses over time, thinned in SQL: 90 days at five minutes become some 160 points each."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

POINTS = 160
"""Points of a course: as many as a chart on a wide screen can show, few enough to read at a glance."""

# One pass by idx_metrics_name_timestamp. Timestamps come in two spellings (schema facts, trap 14), so they are
# compared as seconds, and what is no time is left out.
THINNED = """
SELECT labels, avg(seconds), min(metric_value), avg(metric_value), max(metric_value)
FROM (SELECT labels, metric_value, CAST(strftime('%s', timestamp) AS INTEGER) AS seconds
      FROM metrics WHERE metric_name = :name)
WHERE seconds IS NOT NULL
GROUP BY labels, (seconds - :begin) / :width
ORDER BY labels, 2
"""

SPAN = """
SELECT min(CAST(strftime('%s', timestamp) AS INTEGER)), max(CAST(strftime('%s', timestamp) AS INTEGER))
FROM metrics WHERE metric_name = :name
"""


def courses(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return each metric by name and labels, with points of [seconds since 1970, minimum, mean, maximum]."""
    names = [name for (name,) in connection.execute("SELECT DISTINCT metric_name FROM metrics ORDER BY 1")]
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
        found = json.loads(text or "{}")
    except ValueError:
        found = text
    if not isinstance(found, dict):
        found = {"labels": found}
    return {str(name): str(each) for name, each in found.items()}

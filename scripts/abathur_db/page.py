"""The page of one host, from the data of `report`: health first, then what an operator asks next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from abathur_db import chart, foreign, page_tables
from abathur_db.markup import BAD, GOOD, ago, document, e, empty, lasted, section, size, state, when
from abathur_db.weights import heaviest_first

Data = dict[str, Any]

SENTENCE = 140
"""Characters of a finding that the sentence at the top repeats."""


def sentence(data: Data) -> str:
    """Return the health of a host in one sentence."""
    failed = failures(data)
    if failed:
        first = failed[0]
        count = f"{len(failed)} of {len(data['checks'])} checks failed"
        measured = first["measured"]
        # The whole of it stands below; a sentence has an end.
        said = measured if len(measured) <= SENTENCE else f"{measured[:SENTENCE]}…"
        return f"{data['host']} needs attention: {count}, first {first['id']}: {said.rstrip('.')}."
    if faults := data.get("faults"):
        return f"{data['host']} needs attention: what it tells of {', '.join(sorted(faults))} cannot be read."
    said = f"{data['host']} is healthy: all {len(data['checks'])} checks passed"
    # The page says of both, where they stand, that they cannot be read.
    with suppress(*foreign.MALFORMED):
        newest = newest_backup(data)
        recovery = data["status"].get("recovery_seconds")
        made = f", the newest backup was made {ago(newest['created'], data['generated'])}" if newest else ""
        said += made + (f" and a restore takes {lasted(recovery)}" if newest and recovery is not None else "")
    return f"{said}."


def healthy(data: Data) -> bool:
    """Tell whether every check of a host passed, and all that it tells could be read."""
    return bool(data["ok"]) and not data.get("faults")


def failures(data: Data) -> list[Data]:
    """Return the checks of a host that failed, the heaviest first."""
    return heaviest_first([check for check in data["checks"] if not check["ok"]], lambda check: str(check["id"]))


def name(check: Data) -> str:
    """Return a check's name in words: backup_age is Backup age."""
    words = str(check["id"]).replace("_", " ")
    return (words[:1].upper() + words[1:]).replace("Wal ", "WAL ")


def newest_backup(data: Data) -> Data | None:
    """Return the newest backup that counts and is not known to be damaged."""
    newest = data["status"].get("newest_backup")
    return next((each for each in data["backups"] if each["counts"] and each["id"] == newest), None)


def points(data: Data, metric: str, value: int = 2) -> list[chart.Point]:
    """Return the course of a metric without labels; `value`: 1 minimum, 2 mean, 3 maximum of each moment."""
    course = next((each for each in data["series"] if each["name"] == metric and not each["labels"]), None)
    return [(point[0], point[value]) for point in course["points"]] if course else []


def render(data: Data) -> str:
    """Return the page. A part that makes no sense costs that part alone, and is noted in `faults` of the data."""
    parts = (
        ("growth", "Growth and log", _growth),
        ("latency", "Latencies", page_tables.latencies),
        ("jobs", "Jobs", page_tables.jobs),
        ("backups", "Backups", page_tables.backups),
        ("drills", "Drills", page_tables.drills),
        ("schema", "Schema", page_tables.drift),
        ("checks", "Checks", page_tables.checks),
    )
    contents = "".join(f'<a href="#{target}">{words}</a>' for target, words, _ in parts)
    facts = _part(data, "facts", "At a glance", _facts)
    below = "".join(_part(data, *each) for each in parts)
    title = f"{data['host']}: {'healthy' if healthy(data) else 'needs attention'}"
    badge = state(GOOD, "Healthy") if healthy(data) else state(BAD, "Needs attention")
    header = (
        f'<header><p class="eyebrow">{e(data["host"])} <span class="note">· Abathur&rsquo;s database</span></p>'
        f'<p class="badge">{badge}</p><h1>{e(sentence(data))}</h1>'
        f'<p class="meta">As of {when(data["generated"])} UTC · {e(data["database"])}'
        f" · abathur-db {e(data['version'])}</p>"
        f'<nav aria-label="Contents">{contents}</nav></header>'
    )
    footer = (
        "<footer>All times are UTC. What to do about a fault: <code>abathur-db doctor</code> on the host."
        " This page was written by <code>abathur-db report</code>; it loads nothing from anywhere.</footer>"
    )
    return document(title, f'{header}<main id="main">{_wrong(data)}{facts}{below}</main>{footer}')


def _part(data: Data, identity: str, title: str, make: Callable[[Data], str]) -> str:
    """Return a section; in its place why there is none, as the host told, or as it turns out here."""
    faults = data.setdefault("faults", {})
    try:
        if identity not in faults:
            return make(data)
    except foreign.MALFORMED as error:
        faults[identity] = f"what the host tells of it makes no sense ({type(error).__name__})"
    return section(identity, title, empty(f"This cannot be read: {faults[identity]}."))


def _wrong(data: Data) -> str:
    failed = failures(data)
    if not failed:
        return ""
    items = []
    for check in failed:
        following = f'<p class="next">Next: <code>{e(check["hint"])}</code></p>' if check["hint"] else ""
        items.append(
            f"<li><b>{e(name(check))}</b><p>{e(check['measured'])}"
            f' <span class="note">(expected: {e(check["expected"])})</span></p>{following}</li>'
        )
    return section("wrong", "What is wrong", f'<ul class="wrong">{"".join(items)}</ul>')


def _fact(label: str, value: str, note: str) -> str:
    return f'<div><dt>{e(label)}</dt><dd>{e(value)}<span class="note">{e(note)}</span></dd></div>'


def _facts(data: Data) -> str:
    status, limits = data["status"], data["limits"]
    growth = points(data, "growth_bytes_per_day")
    newest = newest_backup(data)
    facts = []
    if "database_bytes" in status:
        said = f"{size(growth[-1][1])} more a day" if growth else f"schema version {status['schema_version']}"
        facts.append(_fact("Database", size(status["database_bytes"]), said))
        facts.append(
            _fact("Write-ahead log", size(status["wal_bytes"]), f"limit {size(limits['wal_bytes'])}"),
        )
    free = "not known" if status["free_bytes"] is None else size(status["free_bytes"])
    facts.append(_fact("Free disk", free, f"limit {size(limits['disk_free_bytes'])}"))
    made = ago(newest["created"], data["generated"]) if newest else "none"
    facts.append(_fact("Newest verified backup", made, size(newest["bytes"]) if newest else "make one now"))
    recovery = status.get("recovery_seconds")
    drilled = data["drills"][-1]["finished"] if data["drills"] else None
    note = f"drill {ago(drilled, data['generated'])}" if drilled else "no drill yet"
    facts.append(_fact("Recovery", lasted(recovery), note))
    if replica := status.get("replication"):
        behind = "not known" if replica["lag_seconds"] is None else f"{lasted(replica['lag_seconds'])} behind"
        facts.append(_fact("Replica", behind, f"lineage {replica['lineage']:04}"))
    return f'<dl class="facts">{"".join(facts)}</dl>'


def _growth(data: Data) -> str:
    limits = data["limits"]
    figures = []
    # The largest log and the least free disk of each moment: a mean would hide the bad hour.
    for metric, title, value, limit in (
        ("database_bytes", "Database", 2, None),
        ("wal_bytes", "Write-ahead log, at its largest", 3, limits["wal_bytes"]),
        ("disk_free_bytes", "Free disk, at its least", 1, limits["disk_free_bytes"]),
        ("growth_bytes_per_day", "Growth a day", 2, None),
    ):
        course = points(data, metric, value)
        if course:
            note = (
                f"{size(points(data, 'free_page_bytes')[-1][1])} of it free pages" if _has_pages(data, metric) else ""
            )
            figures.append(chart.line(title, course, size, limit=limit, note=note))
    behind = points(data, "replication_lag_seconds", 3)
    if behind and data["status"].get("replication"):
        limit = limits["replication_lag_seconds"]
        figures.append(chart.line("Replica behind, at its most", behind, lasted, limit=limit))
    content = f'<div class="charts">{"".join(figures)}</div>' if figures else ""
    content = content or empty("There is no history yet: the table metrics of the database holds no sizes.")
    return section("growth", "Growth and write-ahead log", content + _at_work(data))


def _has_pages(data: Data, metric: str) -> bool:
    return metric == "database_bytes" and bool(points(data, "free_page_bytes"))


def _at_work(data: Data) -> str:
    """Return how many sessions and tasks there are in each status, at the last measurement."""
    lines = []
    for metric in ("sessions", "tasks"):
        counts = [
            f"{course['points'][-1][2]:.0f} {e(course['labels'].get('status', 'in all'))}"
            for course in data["series"]
            if course["name"] == metric and course["points"][-1][2] > 0
        ]
        if counts:
            lines.append(f'<p class="key">{metric.capitalize()}: {", ".join(counts)}.</p>')
    return "".join(lines)

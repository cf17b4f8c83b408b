"""The sections of a host's page that are tables: latencies, jobs, backups, drills, schema drift, checks."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from abathur_db import chart, foreign
from abathur_db.markup import (
    BAD,
    GOOD,
    NOTHING,
    WARN,
    ago,
    e,
    empty,
    lasted,
    moment,
    section,
    size,
    state,
    table,
    when,
)
from abathur_db.result import counted

Data = dict[str, Any]

DAYS = 28
"""Days of the calendar; a phone shows the newer half."""

SHOWN = 14
"""Rows of backups and drills: two weeks of a daily one; the others stand in `abathur-db backups`."""


def latencies(data: Data) -> str:
    """Return each critical query with its budget, its course and what the last validation measured under load."""
    rows = []
    for query in data["queries"]:
        budget = query["budget_ms"]
        course = next(
            (
                each
                for each in data["series"]
                if each["name"] == "query_seconds" and each["labels"].get("query") == query["name"]
            ),
            None,
        )
        # The slowest of each moment, in ms.
        points = [(point[0], 1000 * point[3]) for point in course["points"]] if course else []
        now = points[-1][1] if points else None
        load = query["load"]
        worst = max([value for value in (now, load["p50_ms"] if load else None) if value is not None], default=None)
        verdict = (
            state(WARN, "not measured")
            if worst is None
            else state(GOOD, "within budget")
            if worst <= budget
            else state(BAD, "over budget")
        )
        label = f"{query['name']}: at most {max((value for _, value in points), default=0):.1f} ms"
        under = f"{load['p50_ms']:.1f} / {load['p99_ms']:.1f}&nbsp;ms" if load else NOTHING
        if load:
            under += f'<span class="note">{e(load["sessions"])} sessions</span>'
        rows.append(
            [
                f'{e(query["name"])}<span class="note">{e(query["purpose"])}</span>',
                chart.spark(points, budget, label) if points else NOTHING,
                f"{f'{now:.1f} of ' if now is not None else ''}{budget:g}&nbsp;ms",
                under,
                verdict,
            ]
        )
    heads = ("Query", "Course, its budget dashed", "Now, of its budget", "p50 / p99 under load", "State")
    return section("latency", "Latency of the critical queries", table("Each query against its budget", heads, rows))


def jobs(data: Data) -> str:
    """Return the calendar of the jobs' results, what failed in its days, and the last and next run of each."""
    if not data["jobs"]:
        return section("jobs", "Jobs", empty("No job has run yet, and no timer is installed."))
    today = foreign.moment(data["generated"]).date()
    days = [today - timedelta(days=DAYS - 1 - number) for number in range(DAYS)]
    head = "".join(_day(each, number) for number, each in enumerate(days))
    body = "".join(_row(name, job["runs"], days) for name, job in data["jobs"].items())
    calendar = (
        f'<table class="calendar"><caption>The last {DAYS} days, today at the right</caption>'
        f'<thead><tr><th scope="col">Job</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        '<p class="key">✓ succeeded, ✕ failed at least once, · no run.</p>'
    )
    rows = []
    for name, job in data["jobs"].items():
        last = job["runs"][-1] if job["runs"] else None
        result = state(GOOD if last["ok"] else BAD, "succeeded" if last["ok"] else "failed") if last else "never ran"
        took = lasted(last.get("seconds")) if last else NOTHING
        rows.append(
            [
                e(name),
                result,
                when(last["finished"]) if last else NOTHING,
                took,
                e(job["next_run"]) if job["next_run"] else NOTHING,
            ]
        )
    heads = ("Job", "Last result", "Finished", "Took", "Next run")
    return section("jobs", "Jobs", calendar + _failures(data, days[0]) + table("Last and next runs", heads, rows))


def _day(each: date, number: int) -> str:
    first = number == 0 or each.day == 1
    # The first column that a phone shows needs its month too.
    kind = "" if first else ' class="phone"'
    month = f"<small{kind}>{each:%b}</small>" if first or number == DAYS // 2 else ""
    return f'<th scope="col"{_old(number)}>{month}{each.day}</th>'


def _old(number: int) -> str:
    return ' class="old"' if number < DAYS // 2 else ""


def _row(name: str, runs: list[Data], days: list[date]) -> str:
    results: dict[date, list[bool]] = {}
    for run in runs:
        finished = moment(run["finished"])
        if finished:
            results.setdefault(finished.date(), []).append(bool(run["ok"]))
    cells = []
    for number, each in enumerate(days):
        found = results.get(each, [])
        kind, glyph, words = (
            ("none", "·", "no run")
            if not found
            else (GOOD, "✓", f"{len(found)} succeeded")
            if all(found)
            else (BAD, "✕", f"{found.count(False)} of {len(found)} failed")
        )
        old = " old" if number < DAYS // 2 else ""
        cells.append(f'<td class="{kind}{old}"><span aria-hidden="true">{glyph}</span><i class="sr">{words}</i></td>')
    return f'<tr><th scope="row">{e(name)}</th>{"".join(cells)}</tr>'


def _failures(data: Data, since: date) -> str:
    found = []
    for name, job in data["jobs"].items():
        for run in job["runs"]:
            finished = moment(run["finished"])
            if not run["ok"] and finished and finished.date() >= since:
                found.append((finished, name, run["summary"]))
    found.sort(reverse=True, key=lambda each: each[0])
    if not found:
        return ""
    rows = [[when(stamp.isoformat()), e(name), e(said)] for stamp, name, said in found[:SHOWN]]
    return table(f"What failed in these days, the newest first ({len(found)} in all)", ("When", "Job", "Why"), rows)


def _checked(check: Data | None, now: str) -> str:
    if not check:
        return NOTHING
    words = "passed" if check["ok"] else "failed"
    return f'{state(GOOD if check["ok"] else BAD, words)}<span class="note">{e(ago(check["time"], now))}</span>'


def backups(data: Data) -> str:
    """Return the newest backups with age, size and checks; those that do not count stand there with the reason."""
    if not data["backups"]:
        return section("backups", "Backups", empty("There is no backup. Make one now: abathur-db backup"))
    now = data["generated"]
    good = [each for each in data["backups"] if each["counts"]]
    faulty = [each for each in data["backups"] if not each["counts"]]
    rows = [
        [
            e(each["id"]),
            e(ago(each["created"], now)),
            f'{size(each["bytes"])}<span class="note">{size(each["plain_bytes"])} unpacked</span>',
            f"{each['rows']:,}",
            e(f"{each['check']}_check"),
            _checked(each["verify"], now),
            _checked(each["drill"], now),
        ]
        for each in good[:SHOWN]
    ]
    intro = f"{counted(len(good), 'backup')}, {size(sum(each['bytes'] for each in good))}"
    intro += f"; the newest {SHOWN} are shown, abathur-db backups lists all." if len(good) > SHOWN else "."
    heads = ("Backup", "Age", "Size", "Rows", "Made with", "Verified", "Drilled")
    content = table("The newest first", heads, rows) if rows else ""
    if faulty:
        reasons = [[e(each["id"]), state(BAD, "does not count"), e(each["fault"])] for each in faulty[:SHOWN]]
        content += table("Not to be relied on", ("Backup", "State", "Why"), reasons)
    return section("backups", "Backups", content, intro)


def drills(data: Data) -> str:
    """Return the recovery time of each drill, as a course and as a table."""
    found = data["drills"]
    if not found:
        return section("drills", "Restore drills", empty("There was no drill yet. Do one now: abathur-db drill"))
    stamped = [(moment(run["finished"]), run["recovery_seconds"]) for run in found]
    points = [(stamp.timestamp(), float(took)) for stamp, took in stamped if stamp and took is not None]
    figure = chart.line("Recovery time", points, lasted) if len(points) > 1 else ""
    rows = [
        [
            when(run["finished"]),
            state(GOOD if run["ok"] else BAD, "restored" if run["ok"] else "failed"),
            lasted(run["recovery_seconds"]),
            e(run["summary"]),
        ]
        for run in reversed(found[-SHOWN:])
    ]
    heads = ("Drill", "Result", "Recovery time", "What it said")
    return section(
        "drills", "Restore drills", f'<div class="charts">{figure}</div>' + table("The newest first", heads, rows)
    )


def drift(data: Data) -> str:
    """Return the diff of the schema that should be and the one that the database has."""
    lines = data["drift"]
    if lines is None:
        content = empty("The database could not be read; the checks say why.")
    elif not lines:
        content = f"<p>{state(GOOD, 'as it should be')}: nothing is absent, nothing was added.</p>"
    else:
        absent = any(line.startswith("-") for line in lines)
        kind = state(BAD, "something is absent") if absent else state(GOOD, "nothing is absent")
        key = (
            "- should be there and is not; + is there beside what the tool makes, what an application added is welcome."
        )
        tags = {"-": "del", "+": "ins"}
        marked = [f"<{tags.get(line[:1], 'span')}>{e(line)}</{tags.get(line[:1], 'span')}>" for line in lines]
        content = f'<p>{kind}</p><pre>{"".join(marked)}</pre><p class="key">{key}</p>'
    return section("schema", "Schema: what should be, against what is", content)


def checks(data: Data) -> str:
    """Return all checks of the status."""
    rows = []
    for check in data["checks"]:
        kind = BAD if not check["ok"] else WARN if check["warning"] else GOOD
        words = {BAD: "failed", WARN: "warning", GOOD: "passed"}[kind]
        rows.append([e(check["id"]), state(kind, words), e(check["measured"]), e(check["expected"])])
    return section("checks", "All checks", table("As status makes them", ("Check", "State", "Found", "Expected"), rows))

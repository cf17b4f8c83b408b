"""The page of a fleet: every host in one table, the worst first."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from abathur_db import foreign, page
from abathur_db.markup import BAD, GOOD, NOTHING, ago, document, e, lasted, size, state, table, when
from abathur_db.result import counted

Data = dict[str, Any]


def badness(data: Data) -> tuple[int, int, str]:
    """Return the sort key of a host: those that did not answer, then those with most failures, then by name."""
    if "unreachable" in data:
        return 0, 0, data["name"]
    return (2 if page.healthy(data) else 1), -sum(not check["ok"] for check in data["checks"]), data["name"]


def render(hosts: list[Data], now: str) -> str:
    """Return the page; `hosts` in their order, each with its data, or with `unreachable` and the reason."""
    sick = [each for each in hosts if "unreachable" in each or not page.healthy(each)]
    silent = [each for each in hosts if "unreachable" in each]
    if sick:
        said = f"{len(sick)} of {counted(len(hosts), 'host')} in need of attention"
        said += f", {len(silent)} of them did not answer." if silent else "."
    else:
        said = "All hosts are healthy."
    badge = state(BAD, "Needs attention") if sick else state(GOOD, "Healthy")
    heads = ("Host", "State", "Gathered", "Database", "Write-ahead log", "Free disk", "Newest backup", "Recovery")
    listed = table("Each name leads to the page of its host", heads, [_row(each, now) for each in hosts])
    body = (
        f'<header><p class="eyebrow">Fleet <span class="note">· Abathur&rsquo;s databases</span></p>'
        f'<p class="badge">{badge}</p><h1>{e(said)}</h1><p class="meta">As of {when(now)} UTC</p></header>'
        f'<main id="main"><section id="hosts"><h2>Hosts, the worst first</h2>'
        f"{listed}</section></main>"
        "<footer>All times are UTC. This page was written by <code>ansible-playbook playbooks/report.yml</code>;"
        " it loads nothing from anywhere.</footer>"
    )
    return document(f"Fleet: {said}", body)


def _row(data: Data, now: str) -> list[str]:
    name = data["name"]
    if "unreachable" in data:
        silent = f'{state(BAD, "no answer")}<span class="note">{e(data["unreachable"])}</span>'
        return [e(name), silent, *[NOTHING] * 6]
    failed = page.failures(data)
    verdict = state(GOOD, "healthy") if page.healthy(data) else state(BAD, f"{len(failed)} checks failed")
    if faults := data.get("faults"):
        verdict += f'<span class="note">cannot be read: {e(", ".join(sorted(faults)))}</span>'
    if failed:
        verdict += f'<span class="note">{e(page.name(failed[0]))}: {e(failed[0]["measured"])}</span>'
    status = data["status"]
    return [
        f'<a href="{e(quote(os.fsencode(name)))}/report.html">{e(name)}</a>',
        verdict + _cell(lambda: _standby(status)),
        e(ago(data["generated"], now)),
        _cell(lambda: _database(data)),
        _cell(lambda: size(status["wal_bytes"]) if "wal_bytes" in status else NOTHING),
        _cell(lambda: NOTHING if status["free_bytes"] is None else size(status["free_bytes"])),
        _cell(lambda: _newest(data)),
        _cell(lambda: lasted(status.get("recovery_seconds"))),
    ]


def _cell(make: Callable[[], str]) -> str:
    """Return a cell, or in its place that what the host told of it makes no sense."""
    try:
        return make()
    except foreign.MALFORMED:
        return '<span class="note">cannot be read</span>'


def _standby(status: Data) -> str:
    if not status.get("standby"):
        return ""
    lag = (status.get("replication") or {}).get("lag_seconds")
    return f'<span class="note">standby, {"lag not known" if lag is None else f"{lasted(lag)} behind"}</span>'


def _database(data: Data) -> str:
    status, growth = data["status"], page.points(data, "growth_bytes_per_day")
    said = size(status["database_bytes"]) if "database_bytes" in status else NOTHING
    return said + (f'<span class="note">{size(growth[-1][1])} more a day</span>' if growth else "")


def _newest(data: Data) -> str:
    newest = page.newest_backup(data)
    return e(ago(newest["created"], data["generated"])) if newest else "none"

"""The page of a fleet: every host in one table, the worst first."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from abathur_db import page
from abathur_db.markup import BAD, GOOD, NOTHING, ago, document, e, lasted, size, state, table, when
from abathur_db.result import counted

Data = dict[str, Any]


def badness(data: Data) -> tuple[int, int, str]:
    """Return the sort key of a host: those that did not answer, then those with most failures, then by name."""
    if "unreachable" in data:
        return 0, 0, data["name"]
    return (2 if data.get("ok") else 1), -sum(not check["ok"] for check in data.get("checks", [])), data["name"]


def render(hosts: list[Data], now: str) -> str:
    """Return the page; `hosts` in their order, each with its data, or with `unreachable` and the reason."""
    sick = [each for each in hosts if not each.get("ok")]
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
    failed = [check for check in data["checks"] if not check["ok"]]
    verdict = state(GOOD, "healthy") if data["ok"] else state(BAD, f"{len(failed)} checks failed")
    if failed:
        verdict += f'<span class="note">{e(page.name(failed[0]))}: {e(failed[0]["measured"])}</span>'
    status, newest = data["status"], page.newest_backup(data)
    if status.get("standby"):
        lag = (status.get("replication") or {}).get("lag_seconds")
        verdict += f'<span class="note">standby, {"lag not known" if lag is None else f"{lasted(lag)} behind"}</span>'
    growth = page.points(data, "growth_bytes_per_day")
    database = size(status["database_bytes"]) if "database_bytes" in status else NOTHING
    if growth:
        database += f'<span class="note">{size(growth[-1][1])} more a day</span>'
    return [
        f'<a href="{e(quote(name))}/report.html">{e(name)}</a>',
        verdict,
        e(ago(data["generated"], now)),
        database,
        size(status["wal_bytes"]) if "wal_bytes" in status else NOTHING,
        size(status["free_bytes"]),
        e(ago(newest["created"], data["generated"])) if newest else "none",
        lasted(status.get("recovery_seconds")),
    ]

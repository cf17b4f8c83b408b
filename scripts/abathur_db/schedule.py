"""Whether the systemd of a host understands the calendars and times of the jobs, before a deploy changes anything."""

from __future__ import annotations

import shutil
import subprocess

from abathur_db.result import Check

EXPECTED = {
    "calendar": "a calendar that comes, as in systemd.time(7)",
    "timespan": "a time span, as in systemd.time(7)",
}


def checks(wanted: dict[str, dict[str, str]]) -> list[Check]:
    """Check expressions by kind, `calendar` or `timespan`, and name; none where systemd-analyze is not installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return []
    return [
        _check(program, kind, name, text) for kind, expressions in wanted.items() for name, text in expressions.items()
    ]


def _check(program: str, kind: str, name: str, text: str) -> Check:
    done = subprocess.run([program, kind, "--", text], capture_output=True, text=True, check=False)
    fault = "which systemd does not understand" if done.returncode != 0 else ""
    if "Next elapse: never" in done.stdout:
        fault = "which systemd never reaches"
    measured = f"{text!r}, {fault}" if fault else text
    return Check(f"{kind}_{name}", not fault, EXPECTED[kind], measured, f"try one: systemd-analyze {kind} 'EXPRESSION'")

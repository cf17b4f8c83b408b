"""What the tool needs of the host before it can run at all.

Keeps to syntax of Python 3.8 (the oldest that ansible-core manages), because it also has to report
a Python that is too old for the rest of the package.
"""

import json
import os
import sqlite3
import sys
from typing import TypedDict

PYTHON = (3, 11)
# Design document, section 1.1.
SQLITE = (3, 35, 0)


class Fact(TypedDict):
    """A check before result.Check can be imported; its fields are the same."""

    id: str
    ok: bool
    expected: str
    measured: str
    hint: str
    warning: bool


def dotted(version):
    # type: (tuple[int, ...]) -> str
    """Return a version tuple in its usual spelling."""
    return ".".join(str(part) for part in version)


def _check(name, ok, expected, measured, hint, warning=False):
    # type: (str, bool, str, str, str, bool) -> Fact
    return {
        "id": name,
        "ok": ok,
        "expected": expected,
        "measured": measured,
        "hint": hint,
        "warning": warning,
    }


def systemd():
    # type: () -> Fact
    """Check that systemd manages the host, as sd_booted(3) does."""
    return _check(
        "systemd",
        os.path.isdir("/run/systemd/system"),
        "systemd is process 1",
        "systemd" if os.path.isdir("/run/systemd/system") else "another init",
        "deploy to a host that was booted with systemd",
    )


def python():
    # type: () -> Fact
    """Check the version of the Python that runs this."""
    return _check(
        "python",
        tuple(sys.version_info[:3]) >= PYTHON,
        ">= " + dotted(PYTHON),
        dotted(tuple(sys.version_info[:3])),
        "upgrade the host to Debian 12 or later: the tool runs with its /usr/bin/python3",
    )


def sqlite():
    # type: () -> Fact
    """Check the SQLite library that this Python loads, and that it has the JSON functions."""
    try:
        json_works = sqlite3.connect(":memory:").execute("SELECT json_valid('{}')").fetchone()[0] == 1
    except sqlite3.OperationalError:
        json_works = False
    return _check(
        "sqlite",
        sqlite3.sqlite_version_info >= SQLITE and json_works,
        ">= " + dotted(SQLITE) + " with JSON",
        sqlite3.sqlite_version + (" with JSON" if json_works else " without JSON"),
        "upgrade libsqlite3-0: apt-get install --only-upgrade libsqlite3-0",
    )


def wal_reset_fix(version):
    # type: (tuple[int, ...]) -> bool
    """Tell whether a SQLite version holds the fix of the WAL-reset defect (3.51.3, 3.50.7, 3.44.6)."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def sqlite_wal_reset():
    # type: () -> Fact
    """Warn when two processes that checkpoint at one moment could corrupt the WAL."""
    fixed = wal_reset_fix(sqlite3.sqlite_version_info)
    return _check(
        "sqlite_wal_reset",
        True,
        "fixed (3.51.3, 3.50.7 or 3.44.6)",
        sqlite3.sqlite_version + (" has the fix" if fixed else " lacks the fix"),
        "two processes that checkpoint at the same moment can corrupt the WAL; our jobs leave that to the "
        "application as long as it does it; upgrade libsqlite3-0 when Debian ships the fix",
        warning=not fixed,
    )


def all_checks():
    # type: () -> list[Fact]
    """Return the checks of the interpreter and the init system, in the order of the report."""
    return [systemd(), python(), sqlite(), sqlite_wal_reset()]


def refuse():
    # type: () -> int
    """Report what this interpreter lacks, as JSON on stdout when --json was asked for; returns 2."""
    checks = all_checks()
    failed = [check for check in checks if not check["ok"]]
    summary = "; ".join("{id} is {measured}, needed: {expected}".format(**check) for check in failed)
    hint = str(failed[0]["hint"])
    if "--json" in sys.argv:
        answer = {
            "command": sys.argv[1] if len(sys.argv) > 1 else "",
            "ok": False,
            "changed": False,
            "summary": summary,
            "checks": checks,
            "report": ["{id}: {measured}, needed: {expected}".format(**check) for check in checks],
            "data": {},
            "hint": hint,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        sys.stderr.write("abathur-db: {}\nhint: {}\n".format(summary, hint))
    return 2

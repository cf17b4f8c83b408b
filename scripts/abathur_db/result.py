"""What every command returns: a Result made of Checks, or a Failure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from abathur_db.weights import heaviest_first


class Exit(IntEnum):
    """Exit codes; operators script against them, so they never change."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CRASH = 70
    """EX_SOFTWARE of sysexits.h: a defect of the tool; the traceback is on standard error."""
    BUSY = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""
    INTERRUPTED = 130
    """128 + SIGINT, as a shell says it of a command that Ctrl-C ended."""


class Failure(Exception):
    """An expected error: what failed with its value, and the next command to run."""

    def __init__(self, message: str, hint: str, code: Exit = Exit.FAILED, *, foreign: bool = False) -> None:
        """Take the sentence, the hint and the exit code. `foreign`: of a file that is another application's."""
        super().__init__(message)
        self.hint = hint
        self.code = code
        self.foreign = foreign


class Lost(Failure):
    """There is no database where one was: nothing is there, or what an application made when it found none.

    Its hint is for a path alone; of a host, rescue.advice has the next step.
    """


@dataclass(frozen=True)
class Check:
    """One thing compared: its name, what was expected, what was found, and the next step if it failed.

    A warning is a check that passed and still has something to say in its hint.
    """

    id: str
    ok: bool
    expected: str
    measured: str
    hint: str = ""
    warning: bool = False

    def __post_init__(self) -> None:
        """Drop the next step of a check that needs none."""
        if self.ok and not self.warning:
            object.__setattr__(self, "hint", "")


@dataclass
class Result:
    """The answer of a command; as JSON it is the contract with Ansible and with operators' scripts."""

    command: str
    summary: str
    changed: bool = False
    checks: list[Check] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    hint: str = ""
    code: Exit = Exit.OK
    table: list[str] = field(default_factory=list)
    """Readable lines below the checks; what they say stands in `data` as well."""

    @property
    def ok(self) -> bool:
        """True when the command did its work and every check passed."""
        return self.code is Exit.OK and all(check.ok for check in self.checks)

    @property
    def exit_code(self) -> Exit:
        """The exit code: the one set, or FAILED when a check did."""
        return self.code if self.code is not Exit.OK or self.ok else Exit.FAILED

    def report(self) -> list[str]:
        """Return the readable table: a line per check, under a failed one what was expected and the next step."""
        width = max((len(check.id) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            mark = "ok" if check.ok and not check.warning else "warn" if check.ok else "FAIL"
            lines.append(f"{mark:4}  {check.id:{width}}  {check.measured}")
            if not check.ok:
                lines.append(f"{'':{width + 6}}  expected: {check.expected}")
            if check.hint:
                lines.append(f"{'':{width + 6}}  next: {check.hint}")
        return lines + self.table

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON contract, in their documented order."""
        return {
            "command": self.command,
            "ok": self.ok,
            "changed": self.changed,
            "summary": self.summary,
            "checks": [asdict(check) for check in self.checks],
            "report": self.report(),
            "data": self.data,
            "hint": self.hint,
        }


@contextmanager
def afterwards(checks: list[Check], name: str, expected: str) -> Iterator[None]:
    """Do what follows a finished piece of work: when it fails, add a warning to `checks`, and the work stands."""
    try:
        yield
    except Failure as failure:
        checks.append(Check(name, True, expected, str(failure), failure.hint, warning=True))
    except OSError as error:
        hint = f"look at it: ls -ld {error.filename}" if error.filename else "see why: dmesg | tail"
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        checks.append(Check(name, True, expected, said, hint, warning=True))


def shell(*words: object) -> str:
    """Return a command as a shell takes it, of a hint: a path may have spaces."""
    return shlex.join(map(str, words))


def away(path: object, suffix: str) -> str:
    """Return the command that moves a file aside, and none that is there already."""
    return shell("mv", "--backup=numbered", path, f"{path}.{suffix}")


def look(path: object) -> str:
    """Return the hint that shows who a file or a directory belongs to."""
    return f"look at it: {shell('ls', '-ld', path)}"


def left(command: str, expected: str, failure: Failure) -> Result:
    """Return the result of a command that had to leave its work to the application: a warning, for nothing is wrong."""
    check = Check(command, True, expected, str(failure), failure.hint, warning=True)
    return Result(command, f"left to the application: {failure}", checks=[check], hint=failure.hint)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 backup, 2 backups."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(line: str) -> str:
    """Return a line with control characters spelt out: names in a database and on a disk can hold any.

    A terminal would obey them, and a journal would show a line that nobody said.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def summarize(command: str, checks: list[Check]) -> tuple[str, str]:
    """Return the sentence and the hint for a list of checks: the heaviest failure names itself."""
    failed = heaviest_first([check for check in checks if not check.ok], lambda check: check.id)
    if not failed:
        warnings = sum(check.warning for check in checks)
        also = f", {warnings} with a warning" if warnings else ""
        return f"{'all ' if len(checks) > 1 else ''}{counted(len(checks), 'check')} passed{also}", ""
    first = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return (
        f"{command} failed at {first.id}: expected {first.expected}, found {first.measured}{more}",
        first.hint,
    )

"""The host's configuration: one TOML file, rendered by Ansible, read into a frozen dataclass.

No default stands here: on a host they are in the role's defaults, for a database of one's own in
development.toml beside this file.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
import typing
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from abathur_db import foreign, guarded
from abathur_db.result import Exit, Failure

DEFAULT_PATH = Path("/etc/abathur-db.toml")
DEVELOPMENT = "development.toml"
SHARED_DIRECTORIES = "shared-directories.txt"

LARGEST = 2**31 - 1
"""SQLite takes its busy timeout as a C int (sqlite.org/c3ref/busy_timeout.html); no setting needs more."""
PATH = re.compile(r"/(?!/)[^\x00-\x1f\x7f\"\\\ud800-\udfff]+")
"""Without the characters that would mean something in a systemd unit, where the paths stand as well, and without bytes
that are no UTF-8; with one slash at the beginning, because two are a place of their own to POSIX, and to Path."""
LONGEST = 200
"""Bytes of a database's name; file systems take 255, and what a restore keeps aside has a longer name by some 40."""
UNIT = re.compile(r"[\w:.@\\][\w:.@\\-]*", re.ASCII)
"""Characters of systemd.unit(5); no leading dash, which systemctl would take for an option."""
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""Names that useradd(8) takes."""


@dataclass(frozen=True)
class Config:
    """Every setting of the tool. Names carry their units; the README's table describes each."""

    database: Path
    backup_directory: Path
    state_directory: Path
    install_directory: Path
    owner: str
    backup_owner: str
    application_units: list[str]
    busy_timeout_ms: int
    lock_wait_seconds: int
    minimum_free_mb: int
    wal_limit_mb: int
    backup_compression: str
    backup_check: str
    backup_keep_daily: int
    backup_keep_weekly: int
    backup_keep_monthly: int
    backup_keep_minimum: int
    backup_maximum_age_hours: int
    analysis_limit: int
    vacuum_slice_pages: int
    vacuum_slice_ms: int
    vacuum_pause_ms: int
    vacuum_minimum_percent: int
    metrics_textfile: str
    metrics_keep_days: int
    retain_session_days: int
    validation_sessions: list[int]
    validation_seconds: int
    validation_p99_ms: int

    @property
    def scratch_directory(self) -> Path:
        """Where throwaway clones live; on the state directory's file system."""
        return self.state_directory / "scratch"

    @property
    def handover_directory(self) -> Path:
        """Where the owner leaves a copy of the database for the user that owns the backups."""
        return self.state_directory / "handover"

    def command(self, name: str, argument: str = "") -> str:
        """Return a command of the tool for this database, as hints name it: a host's own needs no path.

        `argument`: one in the place of the database, which is then named with --database.
        """
        given = f"abathur-db {name} {argument}".rstrip()
        if self.owner:
            return given
        return f"{given} {'--database ' if argument else ''}{shlex.quote(str(self.database))}"

    def job(self, name: str) -> str:
        """Return the command that does a job now: on a host through its unit."""
        return f"systemctl start abathur-db@{name}" if self.owner else self.command(name)

    def sql(self, statement: str) -> str:
        """Return a command that runs one statement on the database as its owner, with nothing installed but Python."""
        opened = f"c = sqlite3.connect({str(self.database)!r}, isolation_level=None)"
        # An application may have written what is no UTF-8.
        words = "c.text_factory = lambda text: text.decode(errors='replace')"
        program = f"import sqlite3; {opened}; {words}; print(*c.execute({statement!r}), sep='\\n')"
        prefix = f"runuser -u {self.owner} -- " if self.owner else ""
        return f"{prefix}python3 -c {shlex.quote(program)}"

    @property
    def bring_up(self) -> str:
        """What creates whatever a database lacks and migrates it: a deploy of its host, or init."""
        return "deploy again: ansible-playbook deploy.yml" if self.owner else self.command("init")

    def records(self, command: str) -> Path:
        """Return where the runs of a command are recorded: those of the backups' own user out of the owner's reach."""
        if self.backup_owner and command in BY_BACKUP_OWNER:
            return self.backup_directory / ".records"
        return self.handover_directory if command == SNAPSHOT else self.state_directory


BY_BACKUP_OWNER = ("backup", "prune")
"""Commands that write backups: they run as the user that owns them, where that is another than the database's."""
SNAPSHOT = "snapshot"
"""The command that hands a copy of the database over to them."""

CHOICES = {"backup_compression": ("zstd", "gzip", "none"), "backup_check": ("quick", "full")}


def load(path: Path) -> Config:
    """Read the configuration file.

    Raises Failure (USAGE) when it is missing, unreadable, not TOML, or does not hold exactly the
    known keys with values of the right type; and for root when another user could have written it.
    """
    guarded.roots_alone(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Failure(
            f"there is no configuration at {path}",
            "name a database (abathur-db COMMAND PATH) or deploy this host (ansible-playbook deploy.yml)",
            Exit.USAGE,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path} cannot be read: {error}", "run it as root: sudo abathur-db …", Exit.USAGE) from None
    return parse(text, str(path))


def parse(text: str, origin: str) -> Config:
    """Turn TOML text into a Config; `origin` names it in errors. Raises Failure (USAGE)."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(origin, f"is not TOML: {error}") from None
    except (ValueError, RecursionError):
        # tomllib lets two faults through: a number of more digits than int() takes, and nesting without end.
        raise _invalid(origin, "is not TOML that can be read: a number or a nesting in it is too long") from None
    known = {field.name for field in fields(Config)}
    if unknown := sorted(values.keys() - known):
        raise _invalid(origin, f"has an unknown key: {', '.join(unknown)}")
    if missing := sorted(known - values.keys()):
        raise _invalid(origin, f"lacks a key: {', '.join(missing)}")
    types_of = typing.get_type_hints(Config)
    read = Config(**{name: _convert(origin, name, value, types_of[name]) for name, value in values.items()})
    if len(os.fsencode(read.database.name)) > LONGEST:
        raise _invalid(origin, f"has a database whose name has more than {LONGEST} bytes: {read.database.name}")
    if read.owner:
        _check_directories(origin, read)
    if read.backup_owner and read.owner in ("", read.backup_owner):
        raise _invalid(
            origin, f"has backup_owner = {read.backup_owner!r} and owner = {read.owner!r}; name two users, or no second"
        )
    return read


def development(text: str, database: Path) -> Config:
    """Return the development profile (its TOML text) for one database file, everything beside it under its name.

    Raises Failure (USAGE) for a path that is not UTF-8, or whose name is too long for what is put beside it.
    """
    # One name for one file: by whatever way it was named, its backups and records are found.
    database = Path(os.path.realpath(database.parent)) / database.name
    if not foreign.is_text(str(database)):
        raise Failure(f"{database} is not UTF-8", "rename the directory or the file", Exit.USAGE)
    if len(os.fsencode(database.name)) > LONGEST:
        raise Failure(
            f"{database} has a name of more than {LONGEST} bytes", "rename it while nobody has it open", Exit.USAGE
        )
    state = database.with_name(f".{database.name}.abathur-db")
    return replace(
        parse(text, DEVELOPMENT),
        database=database,
        backup_directory=database.with_name(f"{database.name}.backups"),
        state_directory=state,
        install_directory=state,
    )


def _invalid(origin: str, what: str) -> Failure:
    return Failure(
        f"{origin} {what}",
        "set it through the role's variables (README, Variables) and deploy again; the file is generated",
        Exit.USAGE,
    )


def _convert(origin: str, name: str, value: Any, wanted: Any) -> Any:
    if name in CHOICES and value not in CHOICES[name]:
        raise _invalid(origin, f"has {name} = {value!r}, which is none of: {', '.join(CHOICES[name])}")
    if wanted is int:
        good = type(value) is int and 0 <= value <= LARGEST
        expected = f"a whole number from 0 to {LARGEST}"
    elif wanted == list[str]:
        good = isinstance(value, list) and all(isinstance(one, str) and UNIT.fullmatch(one) for one in value)
        expected = "a list of names of units"
    elif wanted == list[int]:
        good = isinstance(value, list) and bool(value) and all(type(one) is int and 0 < one <= LARGEST for one in value)
        expected = "a list of whole numbers above 0"
    elif wanted is Path:
        good = isinstance(value, str) and bool(PATH.fullmatch(value)) and Path(value).name not in ("", "..")
        good = good and ".." not in Path(value).parts
        expected = "an absolute path without .., quotes, backslashes and control characters"
    elif name in ("owner", "backup_owner"):
        good = value == "" or (isinstance(value, str) and bool(USER.fullmatch(value)) and value != "root")
        expected = "the name of a system user other than root"
    else:
        good, expected = isinstance(value, str), "text"
        if name == "metrics_textfile":
            good, expected = good and (not value or bool(PATH.fullmatch(value))), "an absolute path, or empty"
    if not good:
        raise _invalid(origin, f"has {name} = {value!r}, which is not {expected}")
    return Path(value) if wanted is Path else value


def _check_directories(origin: str, read: Config) -> None:
    """Refuse directories that a deploy would take away from others: it gives them to the owner, mode 0700."""
    text = (files("abathur_db") / SHARED_DIRECTORIES).read_text(encoding="utf-8")
    shared = [line for line in text.splitlines() if line.startswith("/")]
    trees = [Path(line.removesuffix("/*")) for line in shared if line.endswith("/*")]
    alone = {Path(line.removesuffix("/*")) for line in shared}
    data = {"database": read.database.parent, "backup_directory": read.backup_directory}
    data["state_directory"] = read.state_directory
    every = {**data, "install_directory": read.install_directory}
    for name, directory in every.items():
        within = [tree for tree in trees if tree in directory.parents and name in data]
        if directory in alone or within:
            value = str(getattr(read, name))
            whose = within[-1] if within else directory
            raise _invalid(
                origin, f"has {name} = {value!r}, but {whose} is the system's; it needs a directory of its own"
            )
        for other, taken in every.items():
            if other != name and (taken == directory or taken in directory.parents):
                value = str(getattr(read, name))
                raise _invalid(origin, f"has {name} = {value!r}, which is inside {taken}, the directory of {other}")

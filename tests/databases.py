"""Helpers of the unit tests: databases as applications make them, and a look at what is in a file."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import build
from abathur_db.config import Config

ROOT = Path(__file__).resolve().parents[1]
SQL = ROOT / "sql"


def run(path: Path, *statements: str) -> None:
    """Execute statements as an application would, foreign keys off."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.executescript(statement)
    connection.close()


def value(path: Path, sql: str) -> Any:
    """Return the first value of a query."""
    connection = sqlite3.connect(path)
    row = connection.execute(sql).fetchone()
    connection.close()
    return row[0] if row else None


def application(path: Path, *extras: str) -> None:
    """Make a database of this schema as an application would have: user_version and application_id 0."""
    run(path, (SQL / "migrations/0001_initial.sql").read_text(), "PRAGMA application_id = 0", *extras)


def rows(path: Path, count: int, namespace: str = "user:1") -> None:
    """Insert memories of about 1 kB each, in one transaction."""
    run(
        path,
        "INSERT INTO memory_entries (namespace, key, value, memory_type)"
        f" WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        f" SELECT '{namespace}', 'key' || i, '\"' || hex(randomblob(500)) || '\"', 'semantic' FROM n",
    )


@contextmanager
def at_work(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code in a process of its own, from its first line of output on until the end; then kill it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    )
    try:
        if process.stdout is not None:
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], what: str, seconds: float = 120, poll: float = 0.02) -> Any:
    """Wait until something is so, and return what told it. Raises TimeoutError, naming it, when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s and it never came: {what}")
        time.sleep(poll)
    return found


def dump(path: Path) -> list[str]:
    """Return all rows and definitions."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of every table that is not virtual, texts as bytes."""
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    names = connection.execute(
        "SELECT CAST(name AS BLOB) FROM sqlite_master WHERE type = 'table'"
        " AND sql NOT LIKE 'CREATE VIRTUAL%' AND name NOT LIKE 'sqlite%'"
    )
    found = {}
    for (name,) in names.fetchall():
        # A column of which the value takes a function of the application is none of its content.
        listed = connection.execute("SELECT name FROM pragma_table_xinfo(?) WHERE NOT hidden", (name.decode(),))
        columns = ", ".join(f'"{row[0].decode()}"' for row in listed)
        found[name.decode()] = sorted(connection.execute(f'SELECT {columns} FROM "{name.decode()}"'), key=repr)
    connection.close()
    return found


def picture(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory."""
    return {str(each): each.read_bytes() for each in sorted(directory.rglob("*")) if each.is_file()}


def corrupt(path: Path) -> None:
    """Overwrite pages in the middle of a closed database, past the header that every opener reads."""
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 20] = b"\xff" * 4096 * 17
    path.write_bytes(data)


@contextmanager
def host_directory(name: str) -> Iterator[Path]:
    """Give a directory of root's that everybody may pass, with the tool as it is installed; gone at the end."""
    home = Path("/var/lib") / f"abathur-{name}-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        (home / "abathur-db").write_bytes(build.archive(build.sources()))
        (home / "abathur-db").chmod(0o755)
        yield home
    finally:
        shutil.rmtree(home)


def toml(conf: Config, **changes: Any) -> str:
    """Return a configuration file's text; a change to None leaves the key out."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(conf).items()} | changes
    text = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items() if value is not None}
    return "".join(f"{name} = {value}\n" for name, value in text.items())

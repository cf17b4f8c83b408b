"""The one artefact: the same bytes from the same sources, and a tool that runs anywhere."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import build
import controller
import pytest
from abathur_db.config import Config
from databases import ROOT, toml


def built(target: Path, source: Path = ROOT) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, source / "scripts/build.py", "--output", target], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """Return a directory that every user can reach, unlike pytest's."""
    path = Path("/tmp") / f"abathur-build-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def test_a_clone_somewhere_else_builds_the_same_bytes_under_the_same_name(tmp_path: Path) -> None:
    for part in ("scripts", "sql"):
        shutil.copytree(ROOT / part, tmp_path / "clone" / part, copy_function=shutil.copy)
    shutil.copy(ROOT / "requirements.txt", tmp_path / "clone")
    first, second = built(tmp_path / "a"), built(tmp_path / "b", tmp_path / "clone")
    assert (tmp_path / "a/abathur-db").read_bytes() == (tmp_path / "b/abathur-db").read_bytes()
    assert first["release"] == second["release"]
    assert first["sha256"].startswith(first["release"].rpartition("-")[2])


def test_a_change_of_the_schema_is_another_release(tmp_path: Path) -> None:
    for part in ("scripts", "sql"):
        shutil.copytree(ROOT / part, tmp_path / "clone" / part)
    shutil.copy(ROOT / "requirements.txt", tmp_path / "clone")
    with (tmp_path / "clone/sql/migrations/0001_initial.sql").open("a") as stream:
        stream.write("-- another\n")
    assert built(tmp_path / "a")["release"] != built(tmp_path / "b", tmp_path / "clone")["release"]


STRAY = (
    ".{}.swp",
    "{}~",
    "#{}#",
    ".#{}",
    "{}.orig",
    "{}.rej",
    "{} (copy)",
    "Copy of {}",
    "4913",
    "notes.txt~",
    ".DS_Store",
)
"""What editors, merges and file managers leave beside a file."""


@pytest.mark.parametrize("beside", ["scripts/abathur_db/cli.py", "sql/queries/session_by_id.sql"])
def test_what_an_editor_left_makes_no_other_release_and_no_command_reads_it(tmp_path: Path, beside: str) -> None:
    for part in ("scripts", "sql"):
        shutil.copytree(ROOT / part, tmp_path / "clone" / part)
    shutil.copy(ROOT / "requirements.txt", tmp_path / "clone")
    before = built(tmp_path / "a", tmp_path / "clone")
    for directory in ("scripts/abathur_db", "sql/migrations", "sql/queries", "sql/seeds"):
        for name in STRAY:
            (tmp_path / "clone" / directory / name.format(Path(beside).name)).write_bytes(b"\xffno text, no SQL")
    assert built(tmp_path / "b", tmp_path / "clone") == {**before, "path": str(tmp_path / "b/abathur-db")}
    for command in ("init", "seed", "metrics", "doctor"):
        done = subprocess.run(
            [sys.executable, "-m", "abathur_db", command, tmp_path / "a.db"],
            cwd=tmp_path / "clone/scripts",
            # What lies in this copy is no source of ours whose lines count.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command


def test_a_second_build_leaves_the_file_alone(tmp_path: Path) -> None:
    built(tmp_path)
    before = (tmp_path / "abathur-db").stat()
    built(tmp_path)
    assert (tmp_path / "abathur-db").stat().st_mtime_ns == before.st_mtime_ns


def test_the_archive_holds_sources_sql_and_what_is_bundled_with_its_licence_and_no_more(tmp_path: Path) -> None:
    built(tmp_path)
    names = set(zipfile.ZipFile(tmp_path / "abathur-db").namelist())
    assert {"__main__.py", "abathur_db/cli.py", "abathur_db/sql/migrations/0001_initial.sql"} <= names
    assert {"aiosqlite/core.py", "abathur_db/development.toml"} <= names
    assert {name.partition("-")[0] for name in names if re.search("LICEN[CS]E$", name)} == set(build.BUNDLED)
    assert [name for name in names if "__pycache__" in name or "tests" in name] == []


def test_another_aiosqlite_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("aiosqlite==0.1\n")
    with pytest.raises(SystemExit, match=r"requirements\.txt pins 0\.1\. Next: make venv, then"):
        build._distribution("aiosqlite")


@pytest.mark.parametrize("script", ["build.py", "litestream.py"])
def test_a_lookup_hears_why_there_is_no_answer_and_a_person_sees_a_failure(script: str) -> None:
    """ansible-core alone, as pipx and distributions install it: without site-packages no pinned package is there."""
    command = [sys.executable, "-S", str(ROOT / "scripts" / script)]
    done = subprocess.run([*command, "--lookup"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)["error"]
    assert re.fullmatch(r"\w+: [\w-]+ is not installed for /\S+\. Next: make venv, then .*requirements\.txt", said)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (1, "", said)


def test_a_checkout_that_the_caller_cannot_write_is_built_into_the_caller_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert controller.writable(tmp_path / "dist") == tmp_path / "dist"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert controller.writable(tmp_path / "dist") == tmp_path / "cache/abathur-ops"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert controller.writable(tmp_path / "dist") == Path.home() / ".cache/abathur-ops"


def test_the_built_tool_run_by_root_writes_as_the_databases_owner(everybodys: Path, conf: Config) -> None:
    home = everybodys / "data"
    home.mkdir(mode=0o700)
    shutil.chown(home, "nobody")
    built(everybodys)
    owned = replace(
        conf,
        owner="nobody",
        database=home / "data/a.db",
        backup_directory=home / "backups",
        state_directory=home / "state",
        install_directory=everybodys / "o",
    )
    (everybodys / "o").mkdir()
    for command in ("init", "seed", "backup", "validate", "rollback --to=latest", "status"):
        done = subprocess.run(
            [everybodys / "abathur-db", *command.split()],
            env={"PATH": os.environ["PATH"], "ABATHUR_DB_CONFIG": toml(owned)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert {each.stat().st_uid for each in home.rglob("*")} == {pwd.getpwnam("nobody").pw_uid}


def test_a_tool_that_starts_while_a_deploy_changes_the_link_is_of_one_release(tmp_path: Path) -> None:
    link, following = tmp_path / "abathur-db", tmp_path / "next"
    swaps = f"import os\ndef run():\n    os.replace({str(following)!r}, {str(link)!r})\n"
    main = swaps + "    from abathur_db import late\n    print(late.RELEASE)\n    return 0\n"
    for release, padding in (("one", 0), ("two", 5000)):
        files = {
            "__main__.py": build.MAIN,
            "abathur_db/__init__.py": b"#" * padding,
            "abathur_db/__main__.py": main.encode(),
            "abathur_db/late.py": f"RELEASE = {release!r}\n".encode(),
        }
        (tmp_path / release).write_bytes(build.archive(files))
    link.symlink_to("one")
    following.symlink_to("two")
    # Without the variable by which coverage would look for the sources of these two.
    done = subprocess.run([sys.executable, "-I", link], env={}, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("one\n", "")
    assert link.readlink() == Path("two")

"""The machine around the database: identity, disk space, file systems, systemd."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from abathur_db.result import Exit, Failure

MB = 1_000_000
UNITS = Path("/etc/systemd/system")
FENCE = Path("/etc/abathur-db.fenced")
"""While it is there, no application starts on this host and no command writes; it says since when."""

NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"}
)
"""SQLite's WAL needs memory shared by all processes, which these do not give (sqlite.org/wal.html, section 2.2)."""

TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR}
    | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EFBIG, errno.EISDIR, errno.ESTALE}
)
"""Errors that a host can have at any call that touches a file or starts a program: no defect of the tool."""


def trouble(error: OSError) -> Failure | None:
    """Return an error of the host as a Failure, None for one that a defect of the tool may have caused."""
    if error.errno not in TROUBLE:
        return None
    place = Path(error.filename) if isinstance(error.filename, str) else None
    what = f"{place} cannot be written or read" if place else "a file cannot be written or read"
    where = existing(place.parent) if place else "/"
    look = {
        errno.ENOSPC: f"free space or inodes there: df -h {where}; df -i {where}",
        errno.EDQUOT: "raise the quota of the database's owner, or free space: quota",
        errno.EROFS: f"make it writable: findmnt --target {where}",
    }
    hint = look.get(error.errno, f"look at it: ls -ld {where}; dmesg | tail")
    return Failure(f"{what}: {error.strerror}", hint)


def processors() -> int:
    """Return how many processors this thread may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def half_of_the_processors() -> Iterator[None]:
    """Keep this thread, and what it starts, to half of the processors (at least one) for a while.

    With all of them busy, an application's commits wait, whatever the priorities (README, Measured). Does nothing
    where the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[len(all_of_them) // 2 :])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def condition(directory: Path) -> str:
    """Return what is wrong with a file system that failed: read-only, out of space or of inodes; empty for nothing."""
    try:
        found = os.statvfs(existing(directory))
    except OSError as error:
        return f"{directory} cannot be reached: {error.strerror}"
    free = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY:
        return "its file system is read-only"
    if found.f_files and not found.f_favail:
        return "its file system has no inodes left"
    # What SQLite allocates at once, a -shm of 32 kB for one, did not fit.
    return f"its file system has {readable(free)} free" if free < MB else ""


def become(owner: str) -> None:
    """Go on as the owner of the database, or of the backups, when started by root; do nothing when none is configured.

    A job run by root would leave a -wal and a -shm that lock the application out (trap 12).
    Raises Failure (USAGE) when the user does not exist, or when somebody else runs this.
    """
    if not owner:
        return
    found = account(owner)
    if os.geteuid() == found.pw_uid:
        return
    if os.geteuid() != 0:
        raise Failure(
            f"this runs as {pwd.getpwuid(os.geteuid()).pw_name}, but this is the work of {owner}",
            f"run it as root (it goes on as {owner}): sudo abathur-db …",
            Exit.USAGE,
        )
    os.initgroups(owner, found.pw_gid)
    os.setgid(found.pw_gid)
    os.setuid(found.pw_uid)
    os.environ.update(HOME=found.pw_dir, USER=owner, LOGNAME=owner)


def account(owner: str) -> pwd.struct_passwd:
    """Return the account of an owner, of the database or of the backups. Raises Failure (USAGE) when there is none."""
    try:
        return pwd.getpwnam(owner)
    except KeyError:
        raise Failure(
            f"the user {owner} does not exist on this host",
            "deploy the host: ansible-playbook deploy.yml",
            Exit.USAGE,
        ) from None


def fenced() -> str:
    """Return since when this host is fenced, empty when it is not."""
    try:
        return FENCE.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def seconds_since_boot() -> float:
    """Return for how long this machine has been up, in seconds; where there is no such clock, without its sleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def readable(size: int) -> str:
    """Return a size in bytes as people read it, in decimal units as `df -H` does."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"


def existing(path: Path) -> Path:
    """Return the nearest ancestor of `path` (or itself) that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Return the bytes that an ordinary user can still write where `path` is or will be."""
    return shutil.disk_usage(existing(path)).free


def require_free(path: Path, needed: int, purpose: str) -> None:
    """Raise Failure when fewer than `needed` bytes are free where `path` is."""
    free = free_bytes(path)
    if free < needed:
        raise Failure(
            f"{purpose} needs {readable(needed)} free at {path}, {readable(free)} are; nothing was changed",
            f"free space there: df -h {existing(path)}",
        )


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`, "unknown" where /proc does not tell."""
    target = os.path.realpath(existing(path))
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return kind
    for line in lines:
        # proc(5): mount point is field 5 with \040 for a space; the type follows the lone "-".
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind


def is_local(kind: str) -> bool:
    """Tell whether a file system of this type can hold a WAL database."""
    return kind not in NETWORK_FILE_SYSTEMS and not (kind.startswith("fuse.") or kind == "fuse")


def process_name(pid: int) -> str:
    """Return a process's name and number, as errors show them; 0 or less is one that cannot be seen from here."""
    if pid <= 0:
        return "a process outside this container"
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text(encoding='utf-8').strip()} (pid {pid})"
    except OSError:
        return f"pid {pid}"


def processes_with(*paths: Path) -> list[str]:
    """Return the other processes that have one of the files open, as far as this user may see."""
    wanted = {str(path) for path in paths}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(each) for each in (process / "fd").iterdir()}
        except OSError:
            continue
        if links & wanted and int(process.name) != os.getpid():
            found.append(process_name(int(process.name)))
    return sorted(found)


def as_owner(owner: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do work as an owner, of the database or of the backups, in a child process; return its answer.

    Root goes on as root. Without an owner, or as the owner, it is done right here. Raises the Failure that the work
    raised.
    """
    if not owner or account(owner).pw_uid == os.geteuid():
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child leaves by _exit; tests/test_build.py runs it
        answer: dict[str, Any] = {}
        try:
            become(owner)
            answer = {"value": work()}
        except Failure as failure:
            answer = {"failure": str(failure), "hint": failure.hint, "code": failure.code}
        except OSError as error:
            if failed := trouble(error):
                answer = {"failure": str(failed), "hint": failed.hint, "code": failed.code}
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = json.loads(stream.read() or b"{}")
    os.waitpid(child, 0)
    if "failure" in answer:
        raise Failure(answer["failure"], answer["hint"], Exit(answer["code"]))
    if "value" not in answer:
        raise RuntimeError(f"the work as {owner} ended without an answer")
    value: dict[str, Any] = answer["value"]
    return value


def systemctl(*arguments: str) -> list[str]:
    """Return the lines of `systemctl ARGUMENTS`; none where there is no systemctl or it fails."""
    if not shutil.which("systemctl"):
        return []
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def control(*arguments: str) -> None:
    """Run `systemctl ARGUMENTS`. Raises Failure, with what systemd said, when it fails."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise Failure(f"systemctl {' '.join(arguments)} failed: {said}", f"see why: systemctl status {arguments[-1]}")


def enabled_timers() -> dict[str, Path]:
    """Return job -> the link that enables its timer; read from /etc, because no job may talk to systemd."""
    links = sorted((UNITS / "timers.target.wants").glob("abathur-db@*.timer"))
    return {link.name.partition("@")[2].rpartition(".")[0]: link for link in links if link.exists()}


def period_seconds(calendar: str) -> float | None:
    """Return the time between the next two moments of a calendar expression (systemd.time(7)), None if it has none."""
    command = ["systemd-analyze", "calendar", "--iterations=2", calendar]
    if not shutil.which(command[0]):
        return None
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    moments = re.findall(r"(?:Next elapse|Iter. #2|Iteration #2): \w+ (\S+ \S+) UTC", done.stdout)
    if len(moments) != 2:
        return None
    first, second = (datetime.fromisoformat(each) for each in moments)
    return (second - first).total_seconds()


def journal(job: str, invocation: str, lines: int) -> list[str]:
    """Return the last lines that a job's unit said, in one run of it if systemd told its ID."""
    if not shutil.which("journalctl"):
        return []
    which = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", f"abathur-db@{job}.service"]
    command = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", *which]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout.decode(errors="replace").splitlines()


def properties_of(units: list[str], *names: str) -> dict[str, dict[str, str]]:
    """Return unit -> its properties as systemd states them, in one call; empty where systemd is not running."""
    lines = systemctl("show", *units, "--property", ",".join(("Id", *names))) if units else []
    blocks = "\n".join(lines).split("\n\n")
    shown = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return {each["Id"]: each for each in shown if "Id" in each}


def unit_properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd states them; empty where systemd is not running."""
    lines = systemctl("show", unit, "--property", ",".join(names))
    return dict(line.split("=", 1) for line in lines if "=" in line)

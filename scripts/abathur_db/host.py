"""The machine around the database: identity, disk space, file systems, systemd."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from abathur_db import foreign, interruption
from abathur_db.result import Check, Exit, Failure, printable, shell

MB = 1_000_000
FINISHED = "39f53479d3a045ac8e11786248231fbf"
"""SD_MESSAGE_UNIT_STARTED of sd-messages.h: a oneshot service has run to its end."""
UNITS = Path("/etc/systemd/system")
FENCE = Path("/etc/abathur-db.fenced")
"""While it is there, no application starts on this host and no command writes; it says since when."""

EXIT_CODES = {
    "200": "its working directory cannot be used",
    "203": "its program is absent or cannot be started",
    "217": "its user does not exist",
    "218": "its capabilities cannot be set",
    "226": "its sandbox cannot be made: a directory that it needs is absent",
    "243": "a secret that it needs cannot be read",
}
"""What systemd says by a number when it cannot start a unit (systemd.exec(5), Process Exit Codes)."""

NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"}
)
"""SQLite's WAL needs memory shared by all processes, which these do not give (sqlite.org/wal.html, section 2.2)."""

DEFECTS = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ECHILD, errno.ESRCH, errno.ENOTTY, errno.ESPIPE})
"""Errors that a call without a file's name has through a mistake in the tool; every other one is the host's."""


def trouble(error: OSError) -> Failure | None:
    """Return an error of the host as a Failure, None for one that a defect of the tool has caused.

    What the kernel says of a file by its name is the host's: the file is somebody's who may have changed or deleted it.
    """
    named = isinstance(error.filename, (str, bytes))
    if error.errno is None or (not named and error.errno in DEFECTS):
        return None
    place = Path(os.fsdecode(error.filename)) if named else None
    what = f"{place or 'a file'} cannot be written or read"
    if error.errno == errno.ENOENT and not place:
        # getcwd(2) alone says so without a name.
        what = "the directory that this was started in cannot be used"
    where = existing(place.parent) if place else "/"
    look = {
        errno.ENOSPC: f"free space or inodes there: {shell('df', '-h', where)}; {shell('df', '-i', where)}",
        errno.EDQUOT: "raise the quota of the database's owner, or free space: quota",
        errno.EROFS: f"make it writable: {shell('findmnt', '--target', where)}",
        errno.ENOLCK: "use a file system that can lock files, or start its lock service: "
        + shell("findmnt", "--target", where),
        errno.ENAMETOOLONG: "use a shorter path",
    }
    hint = look.get(error.errno, f"look at it: {shell('ls', '-ld', where)}; dmesg | tail")
    return Failure(f"{what}: {error.strerror}", hint)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a host does to any program, a full disk for one, into a Failure."""
    try:
        yield
    except MemoryError:
        raise Failure("there is no memory left; what was there before is as it was", "free -h; dmesg | tail") from None
    except OSError as error:
        if failure := trouble(error):
            raise failure from error
        raise


def checked(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return the checks of one part; where it cannot be looked at, the one of this name that says why."""
    try:
        with translated():
            return look()
    except Failure as failure:
        return [Check(name, False, "can be looked at", str(failure), failure.hint)]


LOCK = """import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "rb"), fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 1 << 40)
except OSError as error:
    sys.exit(error.errno)
"""
"""Locks a byte that SQLite never locks, far behind its own."""


def unlockable(path: Path) -> str:
    """Return why nobody at all can lock a file; empty when it can be locked.

    SQLite says "locked" of both. Another process tries it: closing a file takes away all locks of this one on it.
    """
    done = subprocess.run([sys.executable, "-Ic", LOCK, path], capture_output=True, check=False)
    return os.strerror(done.returncode) if done.returncode > 0 else ""


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
    return next(iter(fence_lines()), "")


def fence_lines() -> list[str]:
    """Return what the fence says: since when, then a timer a line that it has switched off; none without a fence."""
    try:
        return FENCE.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return []


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
            f"free space there: {shell('df', '-h', existing(path))}",
        )


def mount_number(path: Path) -> bytes:
    """Return the kernel's number of the mount that holds `path`; empty where /proc does not tell."""
    try:
        descriptor = os.open(existing(path), os.O_PATH | os.O_CLOEXEC)
        try:
            opened = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return b""
    return opened.partition(b"mnt_id:")[2].split()[0]


def mount_point(path: Path) -> Path:
    """Return the directory that the file system of `path` is mounted at."""
    there = existing(path).resolve()
    return next(each for each in (there, *there.parents) if os.path.ismount(each))


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`, "unknown" where /proc does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
    except FileNotFoundError:
        return "unknown"
    # By the kernel's number of the mount, not by its name: names can hold any byte. proc(5): in mountinfo the number is
    # the first field and the type follows the lone "-".
    number = mount_number(path)
    kinds = [fields[fields.index(b"-") + 1] for fields in mounts if fields[0] == number]
    return foreign.words(kinds[0]) if kinds else "unknown"


def is_local(kind: str) -> bool:
    """Tell whether a file system of this type can hold a WAL database."""
    return kind not in NETWORK_FILE_SYSTEMS and not (kind.startswith("fuse.") or kind == "fuse")


def process_name(pid: int) -> str:
    """Return a process's name and number, as errors show them; 0 or less is one that cannot be seen from here."""
    if pid <= 0:
        return "a process outside this container"
    try:
        # The kernel cuts a name after 15 bytes, which may be inside a letter.
        return f"{printable(foreign.words(Path(f'/proc/{pid}/comm').read_bytes()).strip())} (pid {pid})"
    except OSError:
        return f"pid {pid}"


def process_state(pid: int) -> str:
    """Return the letter that proc(5) has for a process's state, as T for a stopped one; X for one that is gone."""
    try:
        return foreign.words(Path(f"/proc/{pid}/stat").read_bytes()).rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def in_job() -> bool:
    """Tell whether this runs in the unit of a job, whose sandbox (PrivateUsers=) hides what others have open."""
    try:
        return "/abathur-db@" in foreign.words(Path("/proc/self/cgroup").read_bytes()).replace("\\x2d", "-")
    except OSError:
        return False


def descriptors() -> Iterator[tuple[int, Path]]:
    """Yield each file that another process has open, as the process and its link in /proc, as far as this user may."""
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            yield from ((int(process.name), each) for each in (process / "fd").iterdir())
        except OSError:
            continue


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file that a path leads to: its own under every name. None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def processes_with(*paths: Path) -> list[str]:
    """Return the other processes that have one of the files open, as far as this user may see."""
    wanted = {identity(path) for path in paths} - {None}
    holders = {pid for pid, descriptor in descriptors() if wanted and identity(descriptor) in wanted}
    return sorted(map(process_name, holders))


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
            interruption.begin_child()
            with translated():
                become(owner)
                answer = {"value": work()}
        except Failure as failure:
            answer = {"failure": str(failure), "hint": failure.hint, "code": failure.code}
        except KeyboardInterrupt:
            answer = {"interrupted": True}
        finally:
            if not answer:
                traceback.print_exc()
            os.write(writing, json.dumps({**answer, "done": interruption.done()}).encode())
            os._exit(0)
    os.close(writing)
    with interruption.awaited(child), os.fdopen(reading, "rb") as stream:
        answer = foreign.record(stream.read() or b"{}")
        os.waitpid(child, 0)
        for each in answer.get("done", []):
            interruption.did(each)
    if "interrupted" in answer:
        raise KeyboardInterrupt
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
    with interruption.held():
        # In a session of its own, or Ctrl-C would end systemctl, and its job went on all the same.
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, check=False, start_new_session=True
        )
        if done.returncode == 0:
            interruption.did(f"systemctl {' '.join(arguments)}")
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
    first, second = (foreign.moment(each) for each in moments)
    return (second - first).total_seconds()


def journal(job: str, invocation: str, lines: int) -> list[str]:
    """Return the last lines that a job's unit said, in one run of it if systemd told its ID."""
    if not shutil.which("journalctl"):
        return []
    which = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", f"abathur-db@{job}.service"]
    command = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", *which]
    done = subprocess.run(command, capture_output=True, check=False)
    return foreign.words(done.stdout).splitlines()


def succeeded_since(unit: str, moment: datetime) -> bool:
    """Tell whether systemd has finished a unit well since then, as far as the journal tells."""
    if not unit or not shutil.which("journalctl"):
        return False
    which = ["--unit", unit, f"--since=@{moment.timestamp():.0f}", f"MESSAGE_ID={FINISHED}", "JOB_RESULT=done"]
    command = ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=1", *which]
    return bool(subprocess.run(command, capture_output=True, check=False).stdout.strip())


def properties_of(units: list[str], *names: str) -> dict[str, dict[str, str]]:
    """Return unit -> its properties as systemd states them, in one call; empty where systemd is not running."""
    lines = systemctl("show", *units, "--property", ",".join(("Id", *names))) if units else []
    blocks = "\n".join(lines).split("\n\n")
    shown = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return {each["Id"]: each for each in shown if "Id" in each}


def is_active(unit: str) -> bool:
    """Tell whether a unit runs, or is about to."""
    return unit_properties(unit, "ActiveState").get("ActiveState") in ("active", "activating", "reloading")


def unit_properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd states them; empty where systemd is not running."""
    lines = systemctl("show", unit, "--property", ",".join(names))
    return dict(line.split("=", 1) for line in lines if "=" in line)

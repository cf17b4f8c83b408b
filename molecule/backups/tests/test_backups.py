"""Code that runs as the application's user changes, deletes and forges no backup; on real hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import one_liner, python, running

BACKUPS, HANDED = "/var/backups/abathur", "/var/lib/abathur-db/handover/snapshot.db"


def picture(host: Any) -> str:
    """Return owner, mode, size, time and hash of all files in the backup directory but the records of runs."""
    files = f"find {BACKUPS} -name .records -prune -o -type f"
    listing = f"{files} -printf '%u %m %s %T@ %p\\n' | sort; {files} -exec sha256sum {{}} + | sort"
    return str(host.check_output(listing))


def back_up(host: Any) -> None:
    """Back up through the units; as often as a test likes, systemd would hold the sixth start in 10 s back."""
    host.check_output("systemctl reset-failed && systemctl start abathur-db@backup")


def counting(host: Any) -> list[str]:
    """Return the backups that count."""
    answer = json.loads(host.check_output("abathur-db backups --json"))
    return [each["id"] for each in answer["data"]["backups"] if each["counts"]]


@pytest.fixture
def backed_up(host: Any) -> str:
    """Make a backup; return the picture of all."""
    back_up(host)
    return picture(host)


ATTACKS = """
import os
top = "/var/backups/abathur"
done = []
def attempt(what, *arguments):
    try:
        what(*arguments)
        done.append((what.__name__, arguments))
    except OSError:
        pass
every = [top] + [os.path.join(home, name) for home, folders, files in os.walk(top) for name in folders + files]
assert any(each.endswith(".db.zst") for each in every) and any(".records/last/backup.json" in each for each in every)
for each in every:
    attempt(os.chmod, each, 0o777)
    attempt(os.chown, each, os.getuid(), -1)
    attempt(os.utime, each)
    attempt(os.setxattr, each, "user.x", b"x")
    attempt(os.rename, each, each + ".gone")
    attempt(os.rename, each, "/var/lib/abathur/" + os.path.basename(each))
    attempt(os.replace, "/var/lib/abathur/forged", each)
    attempt(os.link, each, "/var/lib/abathur/link")
    attempt(os.symlink, "/dev/null", each + ".link")
    attempt(os.remove, each)
    attempt(os.rmdir, each)
    attempt(os.truncate, each, 0)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        attempt(os.open, each, flags)
for home in (each for each in every if os.path.isdir(each)):
    for name in ("abathur_20260101_000000.json", "last/backup.json", "backup.json", ".lock", "lock", "sequence"):
        attempt(os.open, os.path.join(home, name), os.O_WRONLY | os.O_CREAT)
        attempt(os.mkfifo, os.path.join(home, name))
        attempt(os.mkdir, os.path.join(home, name))
attempt(os.rename, top, top + ".gone")
attempt(os.rename, "/var/lib/abathur", top)
print(done)
"""


def test_no_backup_no_manifest_and_no_record_can_be_changed_deleted_or_forged(host: Any, backed_up: str) -> None:
    python(host, "open('/var/lib/abathur/forged', 'w').write('forged')")
    records = host.check_output(f"find {BACKUPS}/.records -type f -exec sha256sum {{}} + | sort")
    assert python(host, ATTACKS) == "[]"
    assert picture(host) == backed_up
    assert host.check_output(f"find {BACKUPS}/.records -type f -exec sha256sum {{}} + | sort") == records
    assert host.run("abathur-db verify all").rc == 0


def test_what_the_application_s_user_starts_makes_and_removes_no_backup(host: Any, backed_up: str) -> None:
    for command in ("backup", "prune", "take-over", "snapshot"):
        done = host.run(f"runuser -u abathur -- abathur-db {command}")
        # One is its own work, and one has nothing to do.
        assert done.rc != 0 or command in ("snapshot", "take-over"), done.stdout
    for start in ("systemctl start abathur-db@prune", "systemctl start abathur-db@backup"):
        assert host.run(f"runuser -u abathur -- {start}").rc != 0
    assert picture(host) == backed_up


def test_nothing_that_the_application_s_user_leaves_is_run_by_the_user_of_the_backups(host: Any) -> None:
    """Python runs what it finds in the site-packages of a home; a home in the owner's reach would be a way in."""
    home = host.user("abathur-backup").home
    assert host.run(f"runuser -u abathur -- mkdir -p {home}/x").rc != 0
    program = "import os\ntop = os.path.expanduser('~abathur')\nos.chmod(top, 0o755)\n" + "".join(
        f"os.makedirs(top + '/.local/lib/python3.{minor}/site-packages', exist_ok=True);"
        f"open(top + '/.local/lib/python3.{minor}/site-packages/x.pth', 'w').write("
        "\"import os; os.system('touch /var/backups/abathur/ran /var/lib/abathur-db/handover/ran')\")\n"
        for minor in range(9, 16)
    )
    python(host, f"{program}open(top + '/zstd', 'w').write('#!/bin/sh\\ntouch /var/backups/abathur/ran')")
    try:
        back_up(host)
        assert host.run("cd /var/lib/abathur && runuser -u abathur-backup -- abathur-db prune").rc == 0
    finally:
        python(host, "import os, shutil\nshutil.rmtree('/var/lib/abathur/.local'); os.remove('/var/lib/abathur/zstd')")
        host.check_output("chmod 0700 /var/lib/abathur")
    assert host.run("ls /var/backups/abathur/ran /var/lib/abathur-db/handover/ran").rc != 0


# Each is put in the place of the copy between the two units, and told in a sentence.
PLANTED = {
    "nothing": ("", "no copy of the database was handed over"),
    "a symlink": (f"os.symlink('/etc/shadow', {HANDED!r})", "is a symbolic link to /etc/shadow"),
    "a symlink to a backup": (f"os.symlink(newest, {HANDED!r})", "is a symbolic link to /var/backups/abathur/"),
    "a FIFO": (f"os.mkfifo({HANDED!r})", "is not a regular file"),
    "a hard link": (
        f"open({HANDED!r}, 'w').write('x'); os.link({HANDED!r}, {HANDED!r} + '2')",
        "is another file's second name (a hard link)",
    ),
    "text": (f"open({HANDED!r}, 'w').write('x' * 9000)", "is not a SQLite database"),
    "a hole without end": (f"open({HANDED!r}, 'w').truncate(1 << 42)", "nothing was changed"),
    "a database with a broken page": (
        f"shutil.copy('/var/lib/abathur/abathur.db', {HANDED!r});"
        f"f = open({HANDED!r}, 'r+b'); f.seek(8192); f.write(os.urandom(99999)); os.fchmod(f.fileno(), 0o640)",
        "is corrupt",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_at_the_handover_becomes_no_backup(host: Any, backed_up: str, what: str) -> None:
    plant, sentence = PLANTED[what]
    newest = f"import glob, os, shutil; newest = glob.glob('{BACKUPS}/*.zst')[0]\n"
    host.check_output("systemctl reset-failed && systemctl start abathur-db-snapshot")
    python(host, f"{newest}os.remove({HANDED!r})\n{plant or 'pass'}")
    # As the unit runs it, without asking for a new copy first.
    done = host.run("runuser -u abathur-backup -- abathur-db backup")
    assert done.rc == 1, done.stdout
    assert sentence in done.stderr, done.stderr
    assert "hint: " in done.stderr
    assert picture(host) == backed_up
    python(host, f"import os\nfor each in ({HANDED!r}, {HANDED!r} + '2'):\n  os.path.lexists(each) and os.remove(each)")
    back_up(host)


def test_a_copy_that_is_swapped_and_written_to_during_the_backup_becomes_none_that_is_wrong(
    host: Any, backed_up: str
) -> None:
    before = counting(host)
    loop = f"""
import os, random
while True:
    try:
        with open({HANDED!r}, 'r+b') as stream:
            for _ in range(999):
                stream.seek(random.randrange(0, 1 << 18))
                stream.write(os.urandom(999))
        os.symlink('/etc/shadow', {HANDED!r} + '.x')
        os.rename({HANDED!r} + '.x', {HANDED!r})
    except OSError:
        pass
"""
    with running(host, one_liner(loop)):
        again = "systemctl reset-failed; timeout 120 systemctl start abathur-db@backup"
        codes = [host.run(again).rc for _ in range(8)]
    assert 124 not in codes
    assert any(codes), "nothing was swapped in time"
    # What a run that went well has pruned is gone; nothing else is, and what is there is as it was.
    assert len(counting(host)) >= len(before)
    now = set(picture(host).splitlines())
    left = {line.split()[-1] for line in now}
    assert {line for line in backed_up.splitlines() if line.split()[-1] in left} <= now
    done = host.run("abathur-db verify all")
    assert done.rc == 0, done.stdout
    python(host, f"import os\nos.path.lexists({HANDED!r}) and os.remove({HANDED!r})")
    back_up(host)


def test_a_copy_that_cannot_be_made_is_the_backups_failure_and_alert(host: Any) -> None:
    host.check_output("sh -c 'mkdir /root/aside && mv /var/lib/abathur/abathur.db* /root/aside'")
    try:
        assert host.run("systemctl start abathur-db@backup").rc != 0
        status = json.loads(host.run("abathur-db status --json").stdout)
    finally:
        host.check_output("sh -c 'mv /root/aside/* /var/lib/abathur && rmdir /root/aside'")
    assert "there is no database" in status["data"]["jobs"]["backup"]["summary"]
    back_up(host)


def test_a_backup_directory_that_was_the_owner_s_is_taken_over_by_the_deploy(host: Any, playbook: Any) -> None:
    """The state that a host has from a release before this user: everything in it is the application's."""
    name = str(host.backend.get_pytest_id().removeprefix("ansible://"))
    host.check_output("abathur-db backup")
    made = counting(host)
    host.check_output(f"rm -r {BACKUPS}/.records")
    # What came with the image of a host cannot be renamed; this is about a disk.
    host.check_output(f"cp -a {BACKUPS} {BACKUPS}.x && rm -r {BACKUPS} && mv {BACKUPS}.x {BACKUPS}")
    host.check_output(f"chown -R abathur: {BACKUPS} && chmod -R go= {BACKUPS} && chmod 0700 /var/lib/abathur-db")
    # Planted before: what is followed would be given away, what is kept open could be written to.
    python(
        host,
        f"import os; os.symlink('/root', '{BACKUPS}/link'); os.symlink('/etc/shadow', "
        f"'{BACKUPS}/abathur_20200101_000000.json'); os.mkfifo('{BACKUPS}/abathur_20200102_000000.json')",
    )
    holder = f"import glob, time; f = open(max(glob.glob('{BACKUPS}/*.zst')), 'r+b'); time.sleep(900)"
    with running(host, one_liner(holder)) as pid:
        planned = playbook("deploy.yml", "--check", "--tags", "host", "--limit", name)
        assert planned.returncode == 0, planned.stdout
        assert "changed: [" in planned.stdout.partition("Put the backups out of the reach")[2]
        assert counting(host) == made
        done = playbook("deploy.yml", "--limit", name)
        assert done.returncode == 0, done.stdout
        inode = "stat -c %i"
        held = host.check_output(f"sh -c '{inode} -L /proc/{pid}/fd/3'")
        assert held not in host.check_output(f"sh -c '{inode} {BACKUPS}/*'").split()
    # The deploy's own backup has pruned the oldest of three.
    assert set(made[:2]) <= set(counting(host))
    assert host.check_output(f"find {BACKUPS} -ignore_readdir_race -printf '%u\n' | sort -u") == "abathur-backup"
    assert host.check_output("stat -c '%U %a' /root /etc/shadow") == "root 700\nroot 640"
    assert host.check_output(f"stat -c %U {BACKUPS}.former") == "abathur"
    assert python(host, ATTACKS) == "[]"
    assert host.run("abathur-db verify all").rc == 0
    again = playbook("deploy.yml", "--limit", name)
    assert "changed=0" in again.stdout, again.stdout
    host.check_output(f"rm -r {BACKUPS}.former")


def test_a_disk_for_the_backups_that_is_the_owner_s_is_taken_over_by_the_deploy(host: Any, playbook: Any) -> None:
    """A mount can be neither renamed nor replaced: the deploy ended in a traceback there, for ever."""
    name = str(host.backend.get_pytest_id().removeprefix("ansible://"))
    made = counting(host)
    host.check_output(f"cp -a {BACKUPS} /root/copy && mount -t tmpfs -o size=1g tmpfs {BACKUPS}")
    try:
        host.check_output(
            f"cp -a /root/copy/abathur_* {BACKUPS} && chown -R abathur: {BACKUPS} && chmod -R go= {BACKUPS}"
        )
        done = playbook("deploy.yml", "--limit", name)
        assert done.returncode == 0, done.stdout
        assert set(made[:2]) <= set(counting(host))
        assert host.check_output(f"stat -c '%U %a' {BACKUPS}") == "abathur-backup 750"
        again = playbook("deploy.yml", "--limit", name)
        assert "changed=0" in again.stdout, again.stdout
    finally:
        host.check_output(f"umount {BACKUPS} && rm -r /root/copy")
    back_up(host)

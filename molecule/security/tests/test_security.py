"""A broken-into application gains nothing: the units' rights, what it plants, what it may read; on real hosts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import one_liner, running

JOBS = ("backup", "analyze", "vacuum", "integrity-check", "drill", "metrics", "retain")
KEPT = ("backup", "prune")
HANDOVER = "abathur-db-snapshot.service"
TALKERS = ("abathur-db-alert@backup.service", "abathur-db-ping@backup.service")
OWNED = {
    "/var/lib/abathur": {"abathur"},
    "/var/lib/abathur-db": {"abathur"},
    "/var/backups/abathur": {"abathur-backup"},
}
OURS = "/var/lib/abathur /var/backups/abathur /var/lib/abathur-db"
PRECIOUS = "what only root may read"


@pytest.mark.parametrize("unit", [*(f"abathur-db@{job}.service" for job in (*JOBS, "prune")), HANDOVER])
def test_a_job_has_an_exposure_of_at_most_0_6(host: Any, unit: str) -> None:
    """systemd-analyze counts the threshold in tenths; a plain sandboxed oneshot reaches 0.4 on systemd 252."""
    verdict = host.run(f"systemd-analyze security --no-pager --threshold=6 {unit}")
    assert verdict.rc == 0, verdict.stdout


@pytest.mark.parametrize("unit", TALKERS)
def test_what_needs_the_network_has_an_exposure_of_at_most_1_2(host: Any, unit: str) -> None:
    verdict = host.run(f"systemd-analyze security --no-pager --threshold=12 {unit}")
    assert verdict.rc == 0, verdict.stdout


def test_each_unit_of_the_bundle_is_among_those_that_are_measured(host: Any) -> None:
    units = host.check_output("find /etc/systemd/system -name 'abathur-db*.service' -printf '%f\n'").split()
    # The mail unit is there only where somebody gets mail, and says in its template why it is another.
    jobs = {"abathur-db@.service", "abathur-db@backup.service", "abathur-db@prune.service", HANDOVER}
    assert set(units) == {*jobs, *(name.replace("@backup", f"@{job}") for name in TALKERS for job in ("", *KEPT))}


@pytest.mark.parametrize("unit", TALKERS)
def test_what_is_told_of_a_backup_is_told_by_the_user_that_owns_the_backups(host: Any, unit: str) -> None:
    """Who broke into the application could else hear the address from a process of its own, and silence it."""
    users = {
        job: host.check_output(f"systemctl show -P User {unit.replace('backup', job)}") for job in (*KEPT, "drill")
    }
    assert users == {"backup": "abathur-backup", "prune": "abathur-backup", "drill": "abathur"}


def whose(host: Any) -> dict[str, set[str]]:
    """Return who owns what is in each directory of the bundle."""
    return {path: set(host.check_output(f"find {path} -ignore_readdir_race -printf '%u\n'").split()) for path in OWNED}


def as_user(host: Any, script: str) -> Any:
    """Run a script as the application's user."""
    return host.run(f"runuser -u abathur -- sh -c '{script}'")


@pytest.fixture
def precious(host: Any) -> Iterator[None]:
    """Put a file on the host that is root's alone, and prove at the end that it is as it was."""
    host.check_output(f"sh -c 'printf \"{PRECIOUS}\" > /root/precious && chmod 0600 /root/precious'")
    yield
    assert host.check_output("stat -c '%U %a %h' /root/precious") == "root 600 1"
    assert host.check_output("cat /root/precious") == PRECIOUS
    host.check_output("rm /root/precious")


def name_of(host: Any) -> str:
    """Return the host's name in the inventory."""
    return str(host.backend.get_pytest_id().removeprefix("ansible://"))


PLANTED = (
    "/var/lib/abathur/.abathur.db.restore",
    "/var/lib/abathur-db/handover/snapshot.db",
    "/var/lib/abathur-db/handover/last/snapshot.json",
    "/var/lib/abathur-db/unit/backup.json",
    "/var/lib/abathur-db/checks.json",
    "/var/lib/abathur-db/sequence",
)


VALIDATED = "/var/lib/abathur-db/last/validate.json"


@contextmanager
def planted(host: Any, kind: str, paths: tuple[str, ...]) -> Iterator[None]:
    """Let the user put something at each path for a while."""
    for path in paths:
        as_user(host, f"rm -rf {path}; {kind} {path}")
    try:
        yield
    finally:
        for path in paths:
            as_user(host, f"rm -rf {path}")


@pytest.mark.parametrize("kind", ["ln -s /root/precious", "mkfifo"])
@pytest.mark.usefixtures("precious")
def test_a_deploy_by_root_over_what_the_user_planted_follows_nothing_and_waits_for_nothing(
    host: Any, playbook: Any, kind: str
) -> None:
    with planted(host, kind, (*PLANTED, VALIDATED)):
        # Changes a setting, so that the release is kept, the backup is taken, and everything is validated.
        done = playbook("deploy.yml", "--limit", name_of(host), "-e", "abathur_db_wal_limit_mb=99")
    again = playbook("deploy.yml", "--limit", name_of(host))
    assert done.returncode == 0, done.stdout
    assert "checks passed" in done.stdout
    assert PRECIOUS not in done.stdout
    assert "Traceback" not in done.stdout
    assert again.returncode == 0, again.stdout
    assert whose(host) == OWNED


@pytest.mark.parametrize("kind", ["ln -s /root/precious", "mkfifo"])
@pytest.mark.usefixtures("precious")
def test_a_deploy_that_reads_what_the_user_planted_stops_with_its_name(host: Any, playbook: Any, kind: str) -> None:
    """Only a deploy with nothing to do asks how the last validation ended."""
    with planted(host, kind, (VALIDATED,)):
        done = playbook("deploy.yml", "--limit", name_of(host))
    again = playbook("deploy.yml", "--limit", name_of(host))
    assert done.returncode != 0
    assert f"mv --backup=numbered {VALIDATED} {VALIDATED}.planted" in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout
    assert PRECIOUS not in done.stdout
    assert "Traceback" not in done.stdout
    assert again.returncode == 0, again.stdout


@pytest.mark.usefixtures("precious")
def test_a_directory_that_the_user_swaps_for_a_symlink_is_not_given_away(host: Any, playbook: Any) -> None:
    """The three directories are in ones of root's, so the user cannot; the deploy refuses what root put there."""
    assert as_user(host, "mv /var/lib/abathur-db /var/lib/other").rc != 0
    assert as_user(host, "ln -s /root /var/backups/abathur.link").rc != 0
    host.check_output("sh -c 'mv /var/backups/abathur /var/backups/kept && ln -s /root /var/backups/abathur'")
    try:
        done = playbook("deploy.yml", "--limit", name_of(host))
        owner = host.check_output("stat -c %U /root")
    finally:
        host.check_output("sh -c 'rm /var/backups/abathur && mv /var/backups/kept /var/backups/abathur'")
    assert done.returncode != 0
    assert "/var/backups/abathur is a symbolic link to /root" in done.stdout
    assert owner == "root"


@contextmanager
def swapping(host: Any, path: str) -> Iterator[None]:
    """Let the user put a symlink, a FIFO and nothing at a path, as fast as it can."""
    loop = (
        f"while :; do ln -sfn /root/precious {path}.a; mv -fT {path}.a {path}; rm -f {path}.b; mkfifo {path}.b;"
        f" mv -fT {path}.b {path}; rm -f {path}; done"
    )
    try:
        with running(host, f"sh -c '{loop}'"):
            yield
    finally:
        host.run(f"rm -f {path} {path}.a {path}.b")


@pytest.mark.parametrize("path", ["/var/lib/abathur-db/lock", "/var/lib/abathur-db/handover/snapshot.db"])
@pytest.mark.usefixtures("precious")
def test_a_race_of_renames_gains_nothing_while_root_and_the_units_run(host: Any, path: str) -> None:
    with swapping(host, path):
        for command in ("abathur-db backup", "systemctl start abathur-db@backup", "abathur-db status"):
            begun = time.monotonic()
            done = host.run(f"timeout 120 {command}")
            assert done.rc != 124, f"{command} hung for {time.monotonic() - begun:.0f} s"
            assert PRECIOUS not in done.stdout + done.stderr
    host.run("systemctl reset-failed")
    assert host.run("systemctl start abathur-db@backup").rc == 0


EXCHANGED = ("handover", "last", "scratch", "replication", "lock")
RACER = f"""
import ctypes, os
libc = ctypes.CDLL(None)
os.chdir("/var/lib/abathur-db")
for name in {EXCHANGED}:
    if not os.path.lexists(name):
        os.mkdir(name, 0o700)
    os.symlink("/root/precious" if name == "lock" else "/etc/abathur-db.toml", name + ".x")
while True:
    for name in {EXCHANGED}:
        libc.renameat2(-100, name.encode(), -100, (name + ".x").encode(), 2)
"""


@pytest.mark.usefixtures("precious")
def test_a_name_that_the_user_exchanges_for_a_link_while_root_deploys_gives_nothing_away(
    host: Any, playbook: Any
) -> None:
    """With RENAME_EXCHANGE there is no moment without the name, so every check of a path can be of the other one."""
    before = host.check_output("stat -c '%U %G %a' /etc/abathur-db.toml")
    try:
        with running(host, one_liner(RACER)):
            done = [playbook("deploy.yml", "--limit", name_of(host), "--tags", "host") for _ in range(2)]
            # Turned off, replication would leave a directory there.
            done.append(playbook("deploy.yml", "--limit", name_of(host), "--tags", "units"))
    finally:
        as_user(host, f"cd /var/lib/abathur-db && rm -rf {' '.join(f'{each} {each}.x' for each in EXCHANGED)}")
    assert "Traceback" not in "".join(each.stdout for each in done)
    assert host.check_output("stat -c '%U %G %a' /etc/abathur-db.toml") == before == "root abathur 640"
    again = playbook("deploy.yml", "--limit", name_of(host))
    assert again.returncode == 0, again.stdout


def test_remove_told_twice_deletes_links_and_not_what_they_point_to(host: Any, playbook: Any) -> None:
    host.check_output("sh -c 'mkdir -p /srv/precious && touch /srv/precious/file && chmod 0777 /srv/precious'")
    as_user(host, "ln -s /srv/precious /var/lib/abathur/link; ln -s /srv/precious /var/backups/abathur/link")
    twice = {"abathur_db_remove_data": True, "abathur_db_remove_data_really": True}
    system = {**twice, "abathur_db_install_directory": "/opt", "abathur_db_backup_directory": "//var//backups/"}
    refused = playbook("playbooks/remove.yml", "--limit", f"{name_of(host)},localhost", "-e", json.dumps(system))
    assert refused.returncode != 0
    assert "nothing was removed" in " ".join(refused.stdout.split())
    assert "changed=0" in refused.stdout
    # A disk of its own, which cannot be removed.
    host.check_output("mount -t tmpfs -o size=1g tmpfs /var/backups/abathur && touch /var/backups/abathur/file")
    done = playbook("playbooks/remove.yml", "--limit", f"{name_of(host)},localhost", "-e", json.dumps(twice))
    assert done.returncode == 0, done.stdout
    assert host.check_output("ls -A /var/backups/abathur") == ""
    # Below it is what was there before.
    host.check_output("umount /var/backups/abathur && rm -r /var/backups/abathur")
    assert host.file("/srv/precious/file").exists
    assert not host.file("/var/lib/abathur").exists
    again = playbook("deploy.yml", "--limit", name_of(host))
    assert again.returncode == 0, again.stdout


@pytest.mark.parametrize("umask", ["000", "077"])
def test_a_run_by_root_leaves_files_of_the_owner_alone_whatever_the_umask(host: Any, umask: str) -> None:
    host.check_output(f"sh -c 'umask {umask}; abathur-db backup; abathur-db drill; abathur-db analyze'")
    assert host.check_output(f"find {OURS} -ignore_readdir_race -perm /007 -o -perm /020 -not -name handover") == ""
    assert host.check_output("find /var/lib/abathur -ignore_readdir_race -perm /077") == ""
    assert whose(host) == OWNED


def test_no_row_s_text_is_in_the_journal_a_command_line_or_a_record(host: Any, query: Any) -> None:
    query("INSERT INTO sessions (id, app_name, user_id, metadata) VALUES ('hunter2', 'a', 'b', '\"hunter2\"')")
    # In brackets, so that these commands do not find themselves.
    found = "grep -a -o -e hunter[2] -e seen[1]"
    watch = f"while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | {found}; done > /root/seen"
    with running(host, f"sh -c '{watch}'", user="root"):
        for job in JOBS:
            host.check_output(f"systemctl start abathur-db@{job}")
        host.check_output("abathur-db validate")
        # What the watcher has to see, or it is blind.
        host.check_output("sh -c 'sleep 2; : seen1'")
    assert set(host.check_output("cat /root/seen").split()) == {"seen1"}
    assert host.run("journalctl --no-pager -u 'abathur-db*' | grep hunter[2]").stdout == ""
    assert (
        host.run("grep -r hunter[2] /var/lib/abathur-db /etc/abathur-db.toml /var/backups/abathur --include=*.json").rc
        == 1
    )

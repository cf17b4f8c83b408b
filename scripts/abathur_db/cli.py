"""The command line: the table of commands, the parser, printing, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from abathur_db import __version__, config, foreign, host, interruption, replica, resources, runs
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Lost, Result, printable

CONFIG_VARIABLE = "ABATHUR_DB_CONFIG"
"""Environment variable with the text of a configuration, for a host that has no file yet."""

OWNER, BACKUPS, OF_JOB, CALLER = "the owner", "the backups' owner", "the user of its job", "the caller"
"""As whom a command runs."""


@dataclass(frozen=True)
class Command:
    """One row of the command table.

    `function` is module:name, imported when called, so that the tool starts fast. `lock`: one at a time with
    the other commands that lock. `dry_run`: takes --dry-run. `runs_as`: the database's owner, the user that
    owns the backups, the one of the two whose job it is about, or whoever calls. `prepare`: module:name, called
    before root goes on as that user; what it returns is passed on as `handed`. `shared`: the owner of the
    database and that of the backups, who are in one group, may read what it writes. `recorded`: its result is
    kept for status. `primary`: refused on a fenced host, as all that lock are; metrics has a say of its own.
    `replaces`: puts another database in the place of one that was lost.
    `takes_database`: False for what concerns the host and not a file. `configured`: False for what works
    without a database or a host. `positional`: an argument in the place of the database, which is then named
    with --database. `arguments`: further ones, passed on by name.
    """

    function: str
    help: str
    lock: bool = False
    dry_run: bool = False
    runs_as: str = OWNER
    prepare: str = ""
    shared: bool = False
    recorded: bool = False
    primary: bool = False
    replaces: bool = False
    takes_database: bool = True
    configured: bool = True
    positional: tuple[str, dict[str, Any]] | None = None
    arguments: tuple[tuple[str, dict[str, Any]], ...] = ()


COMMANDS = {
    "init": Command("schema:init", "create, adopt or migrate the database", lock=True, dry_run=True, recorded=True),
    "seed": Command("seed:seed", "insert or update the seed memories", lock=True, dry_run=True, recorded=True),
    "validate": Command(
        "validation:validate",
        "prove that the database is sound and fast enough, on a throwaway clone where it writes",
        lock=True,
        recorded=True,
        arguments=(
            ("--job", {"action": "append", "default": [], "dest": "jobs", "help": "a job that must have its timer"}),
        ),
    ),
    "status": Command("status:status", "show version, schema, sizes, and each job's last result and next run"),
    "doctor": Command(
        "doctor:doctor",
        "say what is wrong, with the evidence and the one command that repairs it",
        runs_as=CALLER,
        arguments=(("--accept", {"action": "store_true", "help": "take the warnings of now as known"}),),
    ),
    "report": Command(
        "report:report",
        "write one page of HTML: health, growth, latencies, jobs, backups, drills, schema",
        dry_run=True,
        arguments=(
            ("--output", {"type": Path, "metavar": "PATH", "help": "default: report.html in the state directory"}),
        ),
    ),
    "fleet": Command(
        "report:fleet",
        "write the pages of many hosts and one of all, from each HOST/report.json in a directory",
        runs_as=CALLER,
        takes_database=False,
        configured=False,
        positional=("directory", {"type": Path, "metavar": "DIRECTORY"}),
        arguments=(
            ("--host", {"action": "append", "default": [], "dest": "hosts", "help": "one that belongs to the fleet"}),
        ),
    ),
    "backup": Command(
        "backup:backup",
        "make a checked, compressed backup, then prune older ones",
        runs_as=BACKUPS,
        prepare="handover:received",
        shared=True,
        lock=True,
        dry_run=True,
        recorded=True,
    ),
    "backups": Command("catalog:list_backups", "list the backups with age, size, checks and drills"),
    "verify": Command(
        "proof:verify",
        "prove a backup again: unpack, hash, check, compare with its manifest",
        lock=True,
        recorded=True,
        positional=("which", {"nargs": "?", "default": "latest", "metavar": "ID|latest|TIME|all"}),
    ),
    "drill": Command(
        "drill:drill",
        "restore the newest backup to scratch, and the replica; check and query it, and time it",
        lock=True,
        recorded=True,
    ),
    "prune": Command(
        "backup:prune",
        "remove the backups that no rule keeps",
        runs_as=BACKUPS,
        shared=True,
        lock=True,
        dry_run=True,
        recorded=True,
    ),
    "snapshot": Command(
        "handover:snapshot",
        "hand a copy of the database over for a backup; systemd calls it",
        shared=True,
        lock=True,
        recorded=True,
    ),
    "take-over": Command(
        "takeover:take_over",
        "give the backup directory to the backups' owner, with what is in it; the deploy calls it",
        runs_as=CALLER,
        shared=True,
        dry_run=True,
    ),
    "restore": Command(
        "restore:restore",
        "put a backup in the database's place, keeping the former one aside",
        lock=True,
        replaces=True,
        dry_run=True,
        recorded=True,
        positional=("source", {"metavar": "ID|latest|TIME|PATH|fresh"}),
    ),
    "rescue": Command(
        "rescue:rescue",
        "bring back a database that was deleted while the application has it open",
        runs_as=CALLER,
        dry_run=True,
        recorded=True,
    ),
    "analyze": Command(
        "maintenance:analyze", "refresh the statistics of the query planner", lock=True, dry_run=True, recorded=True
    ),
    "vacuum": Command(
        "maintenance:vacuum",
        "give free pages back, in slices",
        lock=True,
        dry_run=True,
        recorded=True,
        arguments=(
            ("--convert", {"action": "store_true", "help": "rewrite an adopted database once, so that it can"}),
        ),
    ),
    "checkpoint": Command(
        "maintenance:checkpoint", "move a grown write-ahead log into the database", lock=True, dry_run=True
    ),
    "integrity-check": Command(
        "maintenance:integrity_check",
        "check every page, index, rule and foreign key, on a copy",
        lock=True,
        dry_run=True,
        recorded=True,
        arguments=(
            (
                "--accept",
                {"action": "store_true", "help": "take the violated foreign keys of today as known: they fail nothing"},
            ),
        ),
    ),
    "retain": Command(
        "retain:retain",
        "soft-delete old episodic memories and archive old sessions, as the stored policy says",
        lock=True,
        dry_run=True,
        recorded=True,
    ),
    # Not the common lock: a backup may hold it for long. See metrics.collect.
    "metrics": Command(
        "metrics:collect",
        "record sizes, latencies, jobs and backups for monitoring",
        dry_run=True,
        recorded=True,
    ),
    "replicate": Command(
        "replication:replicate",
        "send every change to the replica until stopped; systemd calls it",
        primary=True,
        recorded=True,
    ),
    # Not the common lock: a change has to arrive while a backup runs as well.
    "replication": Command(
        "replication:replication", "prove that the last change has arrived at the replica", recorded=True
    ),
    "follow": Command(
        "standby:follow",
        "follow the replica of the primary until stopped, on a standby; systemd calls it",
        recorded=True,
    ),
    "fence": Command(
        "failover:fence",
        "stop all that writes on this host, and keep it from starting",
        runs_as=CALLER,
        takes_database=False,
        dry_run=True,
        recorded=True,
        arguments=(
            (
                "--lose-rows",
                {"action": "store_true", "dest": "lose_rows", "help": "also when the replica lacks rows of this host"},
            ),
            ("--yes", {"action": "store_true", "help": "do not ask at a terminal"}),
            (
                "--not-replicated",
                {"action": "store_true", "dest": "not_replicated", "help": "also where no other host could take over"},
            ),
        ),
    ),
    "unfence": Command(
        "failover:unfence",
        "take a fence back: timers, application and replication run again",
        runs_as=CALLER,
        takes_database=False,
        dry_run=True,
        recorded=True,
    ),
    "promote": Command(
        "failover:promote",
        "make a standby the primary",
        runs_as=CALLER,
        takes_database=False,
        dry_run=True,
        recorded=True,
        arguments=(
            (
                "--lose-rows",
                {"action": "store_true", "dest": "lose_rows", "help": "also when it lacks rows of the replica"},
            ),
            ("--alone", {"action": "store_true", "help": "its primary is fenced, or known to be off"}),
            (
                "--new-lineage",
                {
                    "action": "store_true",
                    "dest": "new_lineage",
                    "help": "on a primary: begin a lineage newer than its own, or than another host's, which is fenced",
                },
            ),
        ),
    ),
    "rejoin": Command(
        "failover:rejoin",
        "make a former primary ready to be a standby, keeping its database aside",
        runs_as=CALLER,
        takes_database=False,
        dry_run=True,
        recorded=True,
    ),
    "keep": Command(
        "release:keep",
        "keep the release that runs, for a rollback; the deploy calls it",
        runs_as=CALLER,
        dry_run=True,
        arguments=(("--backup", {"default": "", "metavar": "ID", "help": "the backup just taken"}),),
    ),
    "confirm": Command("release:confirm", "end a deploy that went well", runs_as=CALLER, dry_run=True),
    "rollback": Command(
        "release:rollback",
        "go back to the release before the last deploy, or to a backup",
        runs_as=CALLER,
        dry_run=True,
        recorded=True,
        arguments=(
            (
                "--to",
                {
                    "default": "",
                    "metavar": "ID|latest|TIME|PATH|fresh",
                    "help": "a backup; default: the former release",
                },
            ),
            (
                "--lose-rows",
                {"action": "store_true", "dest": "lose_rows", "help": "also when rows written since are lost"},
            ),
            (
                "--failed-deploy",
                {"action": "store_true", "dest": "failed_deploy", "help": "only from a deploy that failed"},
            ),
        ),
    ),
    "preflight": Command(
        "preflight:preflight",
        "check a host before a deploy, changing nothing",
        runs_as=CALLER,
        arguments=(
            ("--release", {"default": "", "help": "the release that will be installed"}),
            ("--state", {"default": "", "metavar": "JSON", "help": "what the host should be, to compare it with"}),
            ("--schedule", {"default": "", "metavar": "JSON", "help": "calendars and times of the jobs, to check"}),
            ("--machine", {"default": "", "help": "the processor that Litestream is built for"}),
            ("--replica", {"default": "", "metavar": "DIRECTORY", "help": "where the replica is to be kept"}),
            ("--places", {"default": "", "metavar": "JSON", "help": "directories in which root makes something"}),
            ("--standby", {"action": "store_true", "help": "the host is to follow a primary"}),
        ),
    ),
    "alert": Command(
        "alerts:alert",
        "say why a job failed, and tell whoever has to know; systemd calls it",
        runs_as=OF_JOB,
        shared=True,
        takes_database=False,
        arguments=(
            ("job", {"help": "the job that failed"}),
            (
                "--run",
                {
                    "default": "",
                    "metavar": "COMMAND",
                    "help": "a command to run, with the job added and the alert as its input",
                },
            ),
            ("--mail", {"default": "", "metavar": "ADDRESS", "help": "send it by sendmail"}),
            ("--webhook", {"action": "store_true", "help": "post it to the address in the credential webhook"}),
        ),
    ),
    "ping": Command(
        "alerts:ping",
        "tell a dead man's switch that a job succeeded; systemd calls it",
        runs_as=OF_JOB,
        shared=True,
        takes_database=False,
        arguments=(("job", {"help": "the job that succeeded"}),),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser, made from the table of commands."""
    top = argparse.ArgumentParser(prog="abathur-db", description="Builds, checks and maintains an Abathur database.")
    top.add_argument("--version", action="version", version=f"abathur-db {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if command.positional:
            argument, described = command.positional
            sub.add_argument(argument, **described)
        # One or the other: a database of one's own is not configured.
        which = sub.add_mutually_exclusive_group()
        if command.positional and command.takes_database:
            which.add_argument("--database", type=Path, help="a database of one's own; default: the host's")
        elif command.takes_database:
            which.add_argument("database", nargs="?", type=Path, help="a database of one's own; default: the host's")
        which.add_argument("--config", type=Path, default=config.DEFAULT_PATH, help="default: %(default)s")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        if command.dry_run:
            sub.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
        for flag, options in command.arguments:
            sub.add_argument(flag, **options)
    return top


def main(arguments: list[str]) -> int:
    """Run one command; return its exit code. Prints the result, JSON alone on standard output with --json."""
    top = parser()
    if wrong := [each for each in arguments if not foreign.is_text(each)]:
        top.error(f"an argument is not UTF-8: {printable(wrong[0])}")
    options = top.parse_args(arguments)
    # Whatever the caller's umask: nothing that the tool writes is for others.
    os.umask(0o077)
    with interruption.listening():
        result = _interruptible(options)
        return Exit.CRASH if result is None else _answer(result, options.json)


def _answer(result: Result, as_json: bool) -> int:
    """Print a result and return its exit code; what was done is done, also where nobody reads the answer."""
    try:
        _print(result, as_json)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried again at the end, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # Whoever reads on no more, as head, has what it wanted.
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                print(f"abathur-db: the answer could not be written: {error.strerror}", file=sys.stderr)
            # An answer alone is the whole work.
            if not result.changed:
                return result.exit_code or Exit.FAILED
    return result.exit_code


def _interruptible(options: argparse.Namespace) -> Result | None:
    """Run one command to its result, also when it failed or was interrupted; None after a defect, which is printed."""
    try:
        result = _outcome(options)
        interruption.finish()
    except KeyboardInterrupt:
        interruption.finish()
    if not interruption.asked():
        return result
    # Also where it became an error on its way: of a program that Ctrl-C ended as well, or of SQLite.
    done = interruption.done()
    said = f"interrupted; by then: {'; '.join(done)}" if done else "interrupted; nothing was changed"
    hint = "run it again: it goes on from there" if done else ""
    data = {"done": done}
    return Result(options.command, said, changed=bool(done), data=data, hint=hint, code=Exit.INTERRUPTED)


def _outcome(options: argparse.Namespace) -> Result | None:
    try:
        with host.translated():
            return _run(options)
    except Failure as failure:
        return Result(options.command, str(failure), hint=failure.hint, code=failure.code)
    except Exception:
        if not interruption.asked():
            traceback.print_exc()
            print("abathur-db: this is a defect of the tool; report it with the lines above", file=sys.stderr)
        return None


def _run(options: argparse.Namespace) -> Result:
    command = COMMANDS[options.command]
    settings = _configuration(options)
    function: Callable[..., Result] = _function(command.function)
    names = [flag.lstrip("-") if not extra.get("dest") else extra["dest"] for flag, extra in command.arguments]
    names += [command.positional[0]] if command.positional else []
    passed = {name: getattr(options, name) for name in names}
    if command.dry_run:
        passed["dry_run"] = options.dry_run
    changes = not passed.get("dry_run", False)
    if (command.lock or command.primary) and settings.owner and host.fenced():
        _function("failover:refuse")(settings, options.command)
    # Without a user of their own the backups are the owner's; and who only looks, looks as the owner.
    apart = bool(settings.backup_owner) and changes
    user = _user(settings, command, passed.get("job")) if apart else settings.owner
    prepare = command.prepare if apart else ""
    if apart and command.shared:
        os.umask(0o027)
    replica.lend()
    if command.runs_as is not CALLER and not (prepare and os.geteuid() == 0):
        host.become(user)
    home = settings.records(options.command) if user != settings.owner else settings.state_directory
    lock = runs.locked(home, options.command, settings.lock_wait_seconds)
    recording = command.recorded and changes
    begun = time.monotonic()
    try:
        with host.translated():
            if prepare:
                passed["handed"] = _function(prepare)(settings)
                host.become(user)
            # As the database's owner alone: root opens nothing of the application's user.
            if command.takes_database and command.runs_as is not CALLER and user == settings.owner:
                _function("schema:refuse_stranger")(settings, lost=not command.replaces)
            with lock if command.lock and changes else nullcontext():
                result = function(settings, **passed)
    except Failure as failure:
        if isinstance(failure, Lost):
            failure.hint = _function("rescue:advice")(settings, failure)
        # A database of one's own has its records beside it, and nothing is left beside another application's file.
        if recording and (settings.owner or not failure.foreign):
            _record(settings, Result(options.command, str(failure), hint=failure.hint, code=failure.code), begun)
        raise
    if recording:
        _record(settings, result, begun)
    return result


def _user(settings: Config, command: Command, job: str | None = None) -> str:
    """Return the user whose work a command is: without one of their own, the backups are the database owner's."""
    backups = command.runs_as is BACKUPS or (command.runs_as is OF_JOB and job in config.BY_BACKUP_OWNER)
    return settings.backup_owner if settings.backup_owner and backups else settings.owner


def _function(named: str) -> Callable[..., Any]:
    module, name = named.split(":")
    found: Callable[..., Any] = getattr(import_module(f"abathur_db.{module}"), name)
    return found


def _configuration(options: argparse.Namespace) -> Config:
    database = getattr(options, "database", None)
    if not COMMANDS[options.command].configured:
        database = Path("none")
    if database is not None:
        return config.development(resources.development_profile(), database)
    if text := os.environ.get(CONFIG_VARIABLE):
        return config.parse(text, f"the configuration in {CONFIG_VARIABLE}")
    return config.load(options.config)


def _record(settings: Config, result: Result, begun: float) -> None:
    # What a person broke off says nothing of the host.
    if interruption.asked():
        return
    run = {
        **result.as_dict(),
        "version": __version__,
        "finished": runs.now(),
        "seconds": round(time.monotonic() - begun, 3),
        "exit_code": int(result.exit_code),
        # Set by systemd for a unit's processes: tells a timer's run from one by hand.
        "invocation": os.environ.get("INVOCATION_ID", ""),
    }
    home = settings.records(result.command)

    def write() -> dict[str, Any]:
        runs.record(home, run)
        return {}

    try:
        # As the owner also where root ran it: nothing of root's belongs in the owner's directory.
        with host.translated():
            host.as_owner(_user(settings, COMMANDS[result.command]), write)
    except (OSError, Failure) as error:
        print(f"abathur-db: the result could not be kept in {home}: {error}", file=sys.stderr)
        if hint := getattr(error, "hint", ""):
            print(f"hint: {hint}", file=sys.stderr)


def _print(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    for line in result.report():
        print(printable(line))
    stream = sys.stdout if result.ok else sys.stderr
    print(printable(f"{result.command}: {result.summary}"), file=stream)
    if result.hint:
        print(printable(f"hint: {result.hint}"), file=stream)

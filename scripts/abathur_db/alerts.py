"""What is told when a job failed, and by which ways; and the sign of life after one that succeeded."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from abathur_db import __version__, foreign, guarded, host, runs
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, printable, shell

JOURNAL_LINES = 20
REPEAT_SECONDS = 3600
"""The same sentence of a job goes out once in this time: a collector that fails every 5 minutes is one event."""

LONGEST = 2000
"""Characters of a line of an alert: one variable of a program's environment takes 128 kB."""

PAUSES_SECONDS = (2.0, 8.0)
"""Rests before the second and the third try of a request."""
REQUEST_SECONDS = 10
SENDMAIL_PATH = "/usr/sbin:/usr/lib:/usr/bin"
"""Where a mail server puts its sendmail (Debian policy, section 11.6: /usr/sbin and /usr/lib)."""


def compose(config: Config, job: str) -> dict[str, Any]:
    """Return what is known of a failed run: job, result, summary, hint, cause, host, time and its last journal lines.

    `cause` is the same for failures that say the same, numbers apart; one that says nothing is known by its journal.

    systemd gives the unit's result in MONITOR_* variables (systemd.exec(5)). A run that was killed
    left no result of its own; one on a full disk left it in the journal alone.
    """
    last = _known(config, "last", job)
    outcome = os.environ.get("MONITOR_SERVICE_RESULT", "")
    invocation = os.environ.get("MONITOR_INVOCATION_ID", "")
    unit = os.environ.get("MONITOR_UNIT", f"abathur-db@{job}").removesuffix(".service")
    journal = host.journal(job, invocation, JOURNAL_LINES)
    said_why = True
    own_words = last is not None and not last["ok"] and last["invocation"] == invocation
    if last is not None and (own_words or (not outcome and not last["ok"])):
        sentence, hint = f"failed: {last['summary']}", last["hint"]
    elif outcome in ("", "success"):
        sentence, hint = "did not fail; this alert was started by hand", f"journalctl -u {unit} -n 50"
    elif outcome == "exit-code" and (said := _last_words(journal, job)):
        sentence, hint = f"failed: {said[0]}", said[1]
    else:
        number = os.environ.get("MONITOR_EXIT_STATUS", "")
        why = f": {host.EXIT_CODES[number]}" if number in host.EXIT_CODES else ""
        sentence = f"failed: ended with {outcome} {number}".strip() + why
        hint = f"see why: journalctl -u {unit} -n 50"
        said_why = False
    # Other numbers are no other cause: each minute the last change is a minute older.
    cause = re.sub(r"\d+", "0", "\n".join([sentence, *([] if said_why else journal)]))
    return {
        "job": job,
        "result": outcome,
        "summary": _told(f"job {job} {sentence}"),
        "hint": _told(hint),
        "cause": hashlib.sha256(cause.encode(errors="replace")).hexdigest()[:16],
        "host": socket.gethostname(),
        "time": runs.now(),
        "journal": [_told(each) for each in journal],
    }


def _told(line: str) -> str:
    """Return a line as every way takes it: an environment holds no NUL, UTF-8 no half letter, a header one line."""
    short = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    return printable(short.replace("\n", " ").expandtabs())


def _known(config: Config, kind: str, job: str) -> dict[str, Any] | None:
    """Return a record of a job; None as well where it cannot be read, which may be what the job failed of."""
    try:
        return runs.known(config, kind, job)
    except (Failure, OSError):
        return None


def _last_words(journal: list[str], job: str) -> tuple[str, str] | None:
    """Return the sentence and the hint that a job printed last (cli.py), None where it printed none."""
    said = [number for number, line in enumerate(journal) if line.startswith(f"{job}: ")]
    if not said:
        return None
    sentence, *rest = journal[said[-1] :]
    hints = [line.removeprefix("hint: ") for line in rest if line.startswith("hint: ")]
    return sentence.removeprefix(f"{job}: "), hints[0] if hints else ""


def readable(news: dict[str, Any]) -> str:
    """Return an alert as text: for mail, and for a command's standard input."""
    lines = [f"{news['host']}: {news['summary']}", f"next: {news['hint']}", "", *news["journal"]]
    return "\n".join(lines) + "\n"


def alert(config: Config, job: str, run: str = "", mail: str = "", webhook: bool = False) -> Result:
    """Say in one sentence why a job's unit failed, and send it the ways that are named.

    A way that fails is a failed check; the others are gone all the same. The failure is noted, for status and metrics.
    """
    news = compose(config, job)
    if news["result"] not in ("", "success"):
        noted = {"command": job, "finished": news["time"], "invocation": os.environ.get("MONITOR_INVOCATION_ID", "")}
        with suppress(OSError, Failure):
            runs.note_failure(config, {**noted, "summary": news["summary"], "hint": news["hint"]})
    ways: dict[str, tuple[object, Callable[[], str]]] = {
        "command": (run, lambda: _run(run, news)),
        "mail": (mail, lambda: _mail(mail, news)),
        "webhook": (webhook, lambda: _post(news)),
    }
    checks = []
    for way, (wanted, send) in ways.items():
        if not wanted:
            continue
        if _told_before(config, way, news):
            checks.append(Check(way, True, "told", "the same was told less than an hour ago"))
            continue
        try:
            checks.append(Check(way, True, "told", send() or "told"))
        except Failure as failure:
            checks.append(Check(way, False, "told", str(failure), failure.hint))
        except (OSError, ValueError) as error:
            # A command that is no line of a shell, a secret that is no text: the other ways go on.
            checks.append(Check(way, False, "told", f"{way}: {error}", f"set abathur_maintenance_alert_{way} anew"))
        else:
            _remember(config, way, news)
    return Result("alert", news["summary"], checks=checks, data=news, hint=news["hint"])


def ping(config: Config, job: str) -> Result:  # noqa: ARG001 - the signature of every command
    """Request the address in the credential `ping`, so that its silence tells when a job no longer succeeds.

    Raises Failure when it does not answer.
    """
    _request(_credential("ping"), None, f"systemctl start abathur-db-ping@{job}")
    return Result("ping", f"told that {job} succeeded", changed=True)


def _memory(config: Config, way: str, job: str) -> Path:
    return config.records(job) / "alerts" / f"{job}.{way}.json"


def _told_before(config: Config, way: str, news: dict[str, Any]) -> bool:
    """Tell whether this way took news of the same cause within the hour, and the job has not succeeded since."""
    try:
        before = foreign.record(guarded.read_text(_memory(config, way, news["job"])))
        told = foreign.moment(before.get("time"))
    except (Failure, OSError, ValueError):
        return False
    success = _known(config, "success", news["job"])
    recovered = success is not None and foreign.moment(success["finished"]) >= told
    recent = 0 <= (datetime.now(UTC) - told).total_seconds() < REPEAT_SECONDS
    if not recent or recovered or before.get("cause") != news["cause"]:
        return False
    # What is no command of the tool, as a deploy by pulling, leaves no record of its successes.
    return success is not None or not host.succeeded_since(os.environ.get("MONITOR_UNIT", ""), told)


def _remember(config: Config, way: str, news: dict[str, Any]) -> None:
    path = _memory(config, way, news["job"])
    # On the full disk that is the news, for one: told twice is better than by one way only.
    with suppress(Failure, OSError):
        guarded.directory(path.parent)
        runs.write_whole(path, json.dumps({"cause": news["cause"], "time": news["time"]}) + "\n")


def _run(command: str, news: dict[str, Any]) -> str:
    """Run a command of the operator's: the job as its last argument, ABATHUR_* variables, the text as its input."""
    about = {f"ABATHUR_{name.upper()}": news[name] for name in ("job", "result", "summary", "hint", "host", "time")}
    # What it prints goes to the journal and not into the one JSON object.
    return _program([*shlex.split(command), news["job"]], readable(news).encode(), {**os.environ, **about})


def _mail(address: str, news: dict[str, Any]) -> str:
    program = shutil.which("sendmail", path=SENDMAIL_PATH)
    if program is None:
        raise Failure("there is no sendmail on this host", "install a mail server: apt-get install postfix")
    if address.startswith("-"):
        raise Failure(f"{address} is no mail address", "set abathur_maintenance_alert_mail", Exit.USAGE)
    message = EmailMessage()
    message["To"] = address
    message["Subject"] = " ".join(f"{news['host']}: {news['summary']}".split())
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(readable(news))
    # -i: a line with a single dot is no end of the message.
    return _program([program, "-i", address], message.as_bytes(), dict(os.environ))


def _program(command: list[str], given: bytes, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(command, input=given, env=environment, capture_output=True, check=False)
    except OSError as error:
        raise Failure(
            f"{command[0]} cannot be run: {error.strerror}", f"look at it: {shell('ls', '-l', command[0])}"
        ) from None
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        raise Failure(f"{command[0]} ended with {done.returncode}: {said}", f"try it by hand: {command[0]}")
    return said


def _post(news: dict[str, Any]) -> str:
    # `text` is what chat servers show (Slack, Mattermost, Rocket.Chat).
    body = {"text": readable(news), **news}
    _request(_credential("webhook"), json.dumps(body).encode(), f"systemctl start abathur-db-alert@{news['job']}")
    return ""


def _credential(name: str) -> str:
    """Return a secret that systemd lends to the unit (LoadCredential=): in no command line and no environment."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        return (Path(directory) / name).read_text(encoding="utf-8").strip() if directory else ""
    except OSError:
        return ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Followed, a POST would become a GET that says nothing and counts as told."""

    def redirect_request(self, *_: object) -> None:
        return None


def _request(address: str, body: bytes | None, unit: str) -> None:
    """GET an address, or POST JSON to it, three times at most; `unit`: the command that starts the unit that has it.

    Raises Failure, which never names the address.
    """
    if not address.startswith(("http://", "https://")):
        raise Failure("there is no address to send it to", f"run it through its unit, which lends it: {unit}")
    headers = {"User-Agent": f"abathur-db/{__version__}"} | ({"Content-Type": "application/json"} if body else {})
    opener = urllib.request.build_opener(_NoRedirect)
    fault = ""
    for pause in (0.0, *PAUSES_SECONDS):
        time.sleep(pause)
        try:
            request = urllib.request.Request(address, body, headers)  # noqa: S310 - http and https only, see above
            with opener.open(request, timeout=REQUEST_SECONDS):
                return
        except urllib.error.HTTPError as error:
            fault = f"it answered {error.code}"
        except urllib.error.URLError as error:
            fault = str(error.reason)
        except (http.client.InvalidURL, ValueError) as error:
            # No second try changes it.
            said = f"the address cannot be read as one: {type(error).__name__}"
            raise Failure(said, "set the address anew in the inventory, then deploy") from None
        except (OSError, http.client.HTTPException) as error:
            # Not its text: some of these repeat the address.
            fault = type(error).__name__
    raise Failure(
        f"the address did not take it in {len(PAUSES_SECONDS) + 1} tries: {fault}", "look at what listens there"
    )

"""Alerts: what they say, the ways they go out, and the sign of life after a success. The ways are real ones."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from abathur_db import alerts, host, runs
from abathur_db.config import Config
from abathur_db.result import Failure

FAILED = {
    "command": "backup",
    "ok": False,
    "summary": "the disk is full",
    "hint": "df -h",
    "invocation": "abc",
    "finished": "2026-11-24",
}


def ended(monkeypatch: pytest.MonkeyPatch, result: str, invocation: str, status: str = "") -> None:
    """Tell what systemd tells of a unit that ended (systemd.exec(5))."""
    monkeypatch.setenv("MONITOR_SERVICE_RESULT", result)
    monkeypatch.setenv("MONITOR_EXIT_STATUS", status)
    monkeypatch.setenv("MONITOR_INVOCATION_ID", invocation)


def test_an_alert_repeats_the_jobs_own_sentence(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.record(conf.state_directory, FAILED)
    ended(monkeypatch, "exit-code", "abc")
    result = alerts.alert(conf, "backup")
    assert (result.summary, result.hint) == ("job backup failed: the disk is full", "df -h")


def test_an_alert_by_hand_tells_of_the_last_run(conf: Config) -> None:
    runs.record(conf.state_directory, FAILED)
    assert alerts.alert(conf, "backup").summary == "job backup failed: the disk is full"


def test_an_alert_to_try_the_ways_does_not_pretend_a_failure(conf: Config) -> None:
    assert alerts.alert(conf, "backup").summary == "job backup did not fail; this alert was started by hand"


def test_a_job_that_was_killed_is_told_by_what_systemd_knows(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own record is of an earlier run."""
    runs.record(conf.state_directory, FAILED)
    ended(monkeypatch, "signal", "def", status="KILL")
    result = alerts.alert(conf, "backup")
    assert result.summary == "job backup failed: ended with signal KILL"
    assert result.hint == "see why: journalctl -u abathur-db@backup -n 50"


def test_a_unit_that_has_another_name_than_a_job_s_is_named_as_it_is(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITOR_SERVICE_RESULT", "exit-code")
    monkeypatch.setenv("MONITOR_EXIT_STATUS", "2")
    monkeypatch.setenv("MONITOR_UNIT", "abathur-pull.service")
    result = alerts.alert(conf, "pull")
    assert result.summary == "job pull failed: ended with exit-code 2"
    assert result.hint == "see why: journalctl -u abathur-pull -n 50"


@pytest.mark.parametrize(
    ("journal", "summary", "hint"),
    [
        (
            [
                "ok  disk",
                "abathur-db: the result could not be kept",
                "backup: the disk is full",
                "hint: df -h",
                "ended",
            ],
            "job backup failed: the disk is full",
            "df -h",
        ),
        (["backup: older words", "hint: x", "backup: no hint"], "job backup failed: no hint", ""),
        (
            ["nothing of ours"],
            "job backup failed: ended with exit-code 1",
            "see why: journalctl -u abathur-db@backup -n 50",
        ),
    ],
)
def test_a_job_that_could_not_keep_its_result_is_told_by_what_it_said_last(
    conf: Config, monkeypatch: pytest.MonkeyPatch, journal: list[str], summary: str, hint: str
) -> None:
    """On a full disk; the record there is, is of an earlier run."""
    runs.record(conf.state_directory, FAILED)
    monkeypatch.setattr(host, "journal", lambda *_: journal)
    ended(monkeypatch, "exit-code", "def", status="1")
    result = alerts.alert(conf, "backup")
    assert (result.summary, result.hint) == (summary, hint)


@dataclass
class Listener:
    """A web server that answers as it is told, and keeps what it was asked."""

    answers: list[int]
    requests: list[tuple[str, str, dict[str, Any], str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Serve on a port of 127.0.0.1; answer 200 once the prepared answers are used up."""
    state = Listener([])

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            state.requests.append((self.command, self.path, json.loads(body or "{}"), self.headers["User-Agent"]))
            code = state.answers.pop(0) if state.answers else 200
            if code == 0:
                self.wfile.write(b"no answer of HTTP")
                return
            self.send_response(code)
            self.send_header("Location", f"{state.address}elsewhere")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join(60)
    assert not thread.is_alive()
    server.server_close()


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend a directory of secrets as systemd does; rests between tries are short."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0, 0.0))
    return directory


@pytest.fixture
def failed(conf: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Let the job backup have failed, with two lines in the journal."""
    runs.record(conf.state_directory, FAILED)
    monkeypatch.setattr(host, "journal", lambda job, *_: [f"{job}: line 1", "line 2"])
    return conf


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_webhook_gets_the_alert_as_json(failed: Config, listener: Listener, credentials: Path) -> None:
    (credentials / "webhook").write_text(f"{listener.address}hook/secret\n")
    result = alerts.alert(failed, "backup", webhook=True)
    assert result.ok
    ((method, path, body, agent),) = listener.requests
    assert (method, path) == ("POST", "/hook/secret")
    assert agent.startswith("abathur-db/")
    assert set(body) == {"text", "job", "result", "summary", "hint", "cause", "host", "time", "journal"}
    assert (body["job"], body["summary"]) == ("backup", "job backup failed: the disk is full")
    assert body["journal"] == ["backup: line 1", "line 2"]
    assert "next: df -h" in body["text"]


@pytest.mark.parametrize("bad", [500, 404, 302, 0])
def test_a_webhook_is_tried_again(failed: Config, listener: Listener, credentials: Path, bad: int) -> None:
    (credentials / "webhook").write_text(listener.address)
    listener.answers = [bad, bad]
    assert alerts.alert(failed, "backup", webhook=True).ok
    assert [request[0] for request in listener.requests] == ["POST"] * 3


@pytest.mark.parametrize(("bad", "said"), [(500, "it answered 500"), (302, "it answered 302"), (0, "BadStatusLine")])
def test_a_webhook_that_never_takes_it_is_told_without_its_address(
    failed: Config, listener: Listener, credentials: Path, bad: int, said: str
) -> None:
    (credentials / "webhook").write_text(f"{listener.address}secret")
    listener.answers = [bad] * 3
    result = alerts.alert(failed, "backup", webhook=True)
    assert not result.ok
    assert f"the address did not take it in 3 tries: {said}" in result.checks[0].measured
    assert "secret" not in json.dumps(result.as_dict())
    assert str(listener.address) not in json.dumps(result.as_dict())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1/secret", "Connection refused"),
        ("http://127.0.0.1:no/secret", "the address cannot be read as one: InvalidURL"),
        ("http://[secret", "the address cannot be read as one: ValueError"),
        ("file:///etc/secret", "there is no address"),
        ("", "there is no address"),
    ],
)
def test_an_address_that_is_none_is_told_without_it(failed: Config, credentials: Path, address: str, said: str) -> None:
    (credentials / "webhook").write_text(address)
    result = alerts.alert(failed, "backup", webhook=True)
    assert not result.ok
    assert said in result.checks[0].measured
    assert "secret" not in json.dumps(result.as_dict())


def test_a_unit_without_its_credential_says_so(
    failed: Config, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no address" in alerts.alert(failed, "backup", webhook=True).checks[0].measured
    assert not list(credentials.iterdir())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert "there is no address" in alerts.alert(failed, "backup", webhook=True).checks[0].measured


def test_a_ping_tells_of_a_success(conf: Config, listener: Listener, credentials: Path) -> None:
    (credentials / "ping").write_text(f"{listener.address}uuid")
    listener.answers = [503]
    assert alerts.ping(conf, "backup").summary == "told that backup succeeded"
    assert [request[:3] for request in listener.requests] == [("GET", "/uuid", {})] * 2


def test_a_ping_by_hand_is_sent_to_the_unit_that_has_the_address(conf: Config) -> None:
    with pytest.raises(Failure, match="there is no address") as refused:
        alerts.ping(conf, "backup")
    assert refused.value.hint.endswith(": systemctl start abathur-db-ping@backup")


def test_a_ping_that_is_not_heard_fails(conf: Config, listener: Listener, credentials: Path) -> None:
    (credentials / "ping").write_text(f"{listener.address}uuid")
    listener.answers = [503] * 3
    with pytest.raises(Failure, match="did not take it in 3 tries: it answered 503"):
        alerts.ping(conf, "backup")


def test_a_mail_goes_to_sendmail(failed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "sendmail", f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/mail')
    monkeypatch.setattr(alerts, "SENDMAIL_PATH", str(tmp_path))
    assert alerts.alert(failed, "backup", mail="ops@example.org").ok
    assert (tmp_path / "arguments").read_text() == "-i ops@example.org\n"
    mail = message_from_string((tmp_path / "mail").read_text(), policy=policy.default)
    assert mail["To"] == "ops@example.org"
    assert mail["Subject"].endswith(": job backup failed: the disk is full")
    assert mail.get_content().splitlines()[-2:] == ["backup: line 1", "line 2"]


def test_a_sentence_of_several_lines_is_a_subject_of_one(
    failed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.record(failed.state_directory, {**FAILED, "summary": "one\nTo: somebody@else"})
    program(tmp_path / "sendmail", f"cat > {tmp_path}/mail")
    monkeypatch.setattr(alerts, "SENDMAIL_PATH", str(tmp_path))
    assert alerts.alert(failed, "backup", mail="ops@example.org").ok
    mail = message_from_string((tmp_path / "mail").read_text(), policy=policy.default)
    assert mail["To"] == "ops@example.org"
    assert mail["Subject"].endswith("one To: somebody@else")


def test_a_mail_that_cannot_be_sent_is_told(failed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "SENDMAIL_PATH", str(tmp_path))
    assert "there is no sendmail" in alerts.alert(failed, "backup", mail="ops@example.org").checks[0].measured
    program(tmp_path / "sendmail", "echo the queue is full >&2; exit 75")
    assert alerts.alert(failed, "backup", mail="ops").checks[0].measured.endswith("ended with 75: the queue is full")
    assert "-oQ/tmp is no mail address" in alerts.alert(failed, "backup", mail="-oQ/tmp").checks[0].measured


def test_a_command_of_ones_own_gets_job_result_and_journal(
    failed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(monkeypatch, "exit-code", "abc")
    page = program(
        tmp_path / "page me",
        f'echo paged; echo "$@" "$ABATHUR_JOB" "$ABATHUR_RESULT" > {tmp_path}/got; cat >> {tmp_path}/got',
    )
    result = alerts.alert(failed, "backup", run=f"'{page}' --loud")
    assert result.ok
    assert result.checks[0].measured == "paged"
    lines = (tmp_path / "got").read_text().splitlines()
    assert lines[0] == "--loud backup backup exit-code"
    assert lines[1].endswith(": job backup failed: the disk is full")
    assert lines[-1] == "line 2"


def test_an_alert_that_cannot_be_remembered_goes_out_by_every_way(
    failed: Config, listener: Listener, credentials: Path
) -> None:
    (failed.state_directory / "alerts").write_text("a file where its directory would be")
    (credentials / "webhook").write_text(listener.address)
    result = alerts.alert(failed, "backup", run="true", webhook=True)
    assert result.ok
    assert [check.id for check in result.checks] == ["command", "webhook"]
    assert len(listener.requests) == 1


def in_the_way(path: Path) -> None:
    """Put a directory with something in it where a file would be written: nobody can replace it."""
    (path / "something").mkdir(parents=True)


@pytest.mark.parametrize(
    "where",
    ["last/backup.json", "success/backup.json", "alerts/backup.webhook.json", "alerts/.backup.webhook.json.partial"],
)
def test_an_alert_goes_out_whatever_of_its_records_cannot_be_read_or_written(
    conf: Config, listener: Listener, credentials: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    in_the_way(conf.state_directory / where)
    (credentials / "webhook").write_text(listener.address)
    ended(monkeypatch, "signal", "def", status="KILL")
    result = alerts.alert(conf, "backup", webhook=True)
    assert [(check.id, check.ok) for check in result.checks] == [("webhook", True)]
    assert listener.requests[0][2]["summary"] == "job backup failed: ended with signal KILL"


def test_a_run_that_left_no_record_is_known_by_its_alert_until_a_later_one_leaves_its_own(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {**FAILED, "ok": True, "summary": "fine", "finished": "2026-11-24T02:00:00+00:00"}
    runs.record(conf.state_directory, good)
    assert runs.last(conf, "backup") == runs.known(conf, "last", "backup")
    ended(monkeypatch, "signal", "def", status="KILL")
    alerts.alert(conf, "backup")
    last = runs.last(conf, "backup")
    assert last is not None
    assert (last["ok"], last["summary"], last["invocation"]) == (
        False,
        "job backup failed: ended with signal KILL",
        "def",
    )
    runs.record(conf.state_directory, {**good, "finished": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()})
    assert runs.last(conf, "backup") == runs.known(conf, "last", "backup")


def test_a_run_that_left_a_record_is_known_by_that(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.record(conf.state_directory, {**FAILED, "finished": "2026-11-24T02:00:00+00:00"})
    ended(monkeypatch, "exit-code", "abc")
    alerts.alert(conf, "backup")
    assert runs.last(conf, "backup") == runs.known(conf, "last", "backup")


def test_an_alert_that_was_tried_by_hand_notes_no_failure(conf: Config) -> None:
    alerts.alert(conf, "backup")
    assert runs.last(conf, "backup") is None


def test_no_note_of_a_failure_hides_one(conf: Config) -> None:
    """The application's user can write it; a record of the backup job he cannot."""
    runs.record(conf.state_directory, {**FAILED, "finished": "2026-11-24T02:00:00+00:00"})
    runs.note_failure(conf, {**FAILED, "ok": True, "finished": "2027-11-24T02:00:00+00:00", "invocation": "x"})
    assert runs.last(conf, "backup") == runs.known(conf, "last", "backup")


def test_a_command_that_fails_or_is_absent_is_told_and_the_other_ways_go_on(
    failed: Config, tmp_path: Path, listener: Listener, credentials: Path
) -> None:
    (credentials / "webhook").write_text(listener.address)
    result = alerts.alert(failed, "backup", run=str(tmp_path / "none"), webhook=True)
    assert [check.ok for check in result.checks] == [False, True]
    assert "none cannot be run: No such file or directory" in result.checks[0].measured
    assert result.summary == "job backup failed: the disk is full"
    assert not result.ok
    assert alerts.alert(failed, "backup", run="false").checks[0].measured == "false ended with 1: "


def test_the_same_news_goes_out_once_an_hour_by_each_way(failed: Config, listener: Listener, credentials: Path) -> None:
    (credentials / "webhook").write_text(listener.address)

    def told() -> int:
        alerts.alert(failed, "backup", webhook=True)
        return len(listener.requests)

    assert [told(), told()] == [1, 1]
    assert alerts.alert(failed, "backup", webhook=True).checks[0].measured.startswith("the same was told")
    assert alerts.alert(failed, "backup", run="true").checks[0].measured == "told"
    # Another sentence, an hour that passed, a success in between, a memory that is no memory: told again.
    # The same with another number is not.
    for age, count in ((65, 2), (125, 2)):
        runs.record(failed.state_directory, {**FAILED, "summary": f"the last change is {age} s old"})
        assert told() == count
    memory = failed.state_directory / "alerts" / "backup.webhook.json"
    earlier = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "time": earlier}))
    assert told() == 3
    good = {**FAILED, "ok": True, "finished": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}
    runs.record(failed.state_directory, good)
    runs.record(failed.state_directory, {**FAILED, "summary": "another"})
    assert told() == 4
    (failed.state_directory / "success" / "backup.json").unlink()
    memory.write_text("[]")
    assert told() == 5


def test_news_that_nobody_took_are_not_held_back(failed: Config, listener: Listener, credentials: Path) -> None:
    (credentials / "webhook").write_text(listener.address)
    listener.answers = [500] * 3
    assert not alerts.alert(failed, "backup", webhook=True).ok
    assert alerts.alert(failed, "backup", webhook=True).ok


def test_the_journal_is_asked_for_one_run_or_for_the_unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "journalctl", 'echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert host.journal("backup", "abc", 5)[0].endswith("--lines=5 _SYSTEMD_INVOCATION_ID=abc")
    assert host.journal("backup", "", 5)[0].endswith("--unit abathur-db@backup.service")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert host.journal("backup", "", 5) == []


def test_what_keeps_no_record_is_told_again_for_another_cause_and_after_a_success(
    conf: Config, listener: Listener, credentials: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A deploy by pulling: systemd's sentence is the same for all of its failures, and its journal is not."""
    (credentials / "webhook").write_text(listener.address)
    program(tmp_path / "journalctl", f'case "$*" in *MESSAGE_ID*) cat {tmp_path}/good;; *) cat {tmp_path}/lines;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("MONITOR_UNIT", "abathur-pull.service")
    monkeypatch.setenv("MONITOR_SERVICE_RESULT", "exit-code")
    monkeypatch.setenv("MONITOR_EXIT_STATUS", "2")
    monkeypatch.setenv("MONITOR_INVOCATION_ID", "abc")

    def told(line: str, good: str = "") -> int:
        (tmp_path / "lines").write_text(f"{line}\n")
        (tmp_path / "good").write_text(good)
        alerts.alert(conf, "pull", webhook=True)
        return len(listener.requests)

    assert told("fatal: the server 10.0.0.1 is away") == 1
    assert told("fatal: the server 10.0.0.2 is away") == 1
    assert told("no such branch") == 2
    assert told("no such branch") == 2
    assert told("no such branch", "Finished abathur-pull.service") == 3


def test_without_a_journal_no_success_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not host.succeeded_since("", datetime.now(UTC))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not host.succeeded_since("abathur-pull.service", datetime.now(UTC))


ODD = {
    "a NUL": "cut\0here",
    "half a letter": "file \ud800 and \udcff",
    "a header of its own": "one\nBcc: somebody@else\r\n\r\nbody",
    "the terminal's commands": "\x1b[2J\x07",
    "no character": "\uffff \ue000 \u200f \u2028",
    "a line of 1 MB": "x" * 900_000,
    "a dot alone": ".\n.",
    "what a shell obeys": "$(touch gone); `id` && \"'",
}


@pytest.fixture
def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, credentials: Path) -> Path:
    """Set up every way; what a mail and a command got stands in the directory, as `mail` and `got`."""
    program(tmp_path / "sendmail", f"cat > {tmp_path}/mail")
    program(tmp_path / "page", f'printf "%s" "$ABATHUR_SUMMARY" > {tmp_path}/got; cat > /dev/null')
    monkeypatch.setattr(alerts, "SENDMAIL_PATH", str(tmp_path))
    (credentials / "webhook").write_text(listener.address)
    return tmp_path


@pytest.mark.parametrize("case", [f"{text}, in the {where}" for text in ODD for where in ("record", "journal")])
def test_whatever_a_job_says_the_alert_goes_out_by_every_way(
    conf: Config, listener: Listener, ways: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    text, _, where = case.partition(", in the ")
    said = ODD[text]
    if where == "record":
        runs.record(conf.state_directory, {**FAILED, "summary": said, "hint": said})
    monkeypatch.setattr(host, "journal", lambda *_: [f"backup: {said}", f"hint: {said}", said])
    ended(monkeypatch, "exit-code", "abc")
    result = alerts.alert(conf, "backup", run=f"{ways}/page", mail="ops@example.org", webhook=True)
    assert [(each.id, each.ok) for each in result.checks] == [("command", True), ("mail", True), ("webhook", True)]
    summary = result.summary
    assert (summary.startswith("job backup failed: "), summary.isprintable(), len(summary) < 3000) == (True,) * 3
    mail = message_from_string((ways / "mail").read_text(), policy=policy.default)
    assert (mail["To"], mail["Bcc"]) == ("ops@example.org", None)
    assert summary.split()[-1] in mail["Subject"]
    assert (ways / "got").read_text() == summary == listener.requests[0][2]["summary"]
    assert result.exit_code == 0


@pytest.mark.parametrize("fault", ["a symlink", "a directory", "no right to read"])
def test_an_alert_whose_record_cannot_be_read_goes_out_with_what_the_journal_says(
    conf: Config, listener: Listener, credentials: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The directory of the records may be what the job failed of."""
    path = conf.state_directory / "last/backup.json"
    path.parent.mkdir(parents=True)
    if fault == "a symlink":
        path.symlink_to("/etc/passwd")
    elif fault == "a directory":
        path.mkdir()
    else:
        path.parent.rename(path.parent.with_name("last.d"))
        path.parent.symlink_to("last")
    monkeypatch.setattr(host, "journal", lambda *_: ["backup: the disk is full", "hint: df -h"])
    ended(monkeypatch, "exit-code", "abc")
    (credentials / "webhook").write_text(listener.address)
    result = alerts.alert(conf, "backup", webhook=True)
    assert (result.ok, result.summary) == (True, "job backup failed: the disk is full")
    assert listener.requests


@pytest.mark.parametrize(
    ("way", "wrong"), [("command", {"run": "no 'end"}), ("mail", {"mail": "a@b\nBcc: c@d"}), ("webhook", {})]
)
@pytest.mark.usefixtures("ways")
def test_a_way_that_is_set_up_wrong_keeps_no_other_from_going_out(
    failed: Config, credentials: Path, way: str, wrong: dict[str, str]
) -> None:
    if way == "webhook":
        (credentials / "webhook").write_bytes(b"http://\xff.example.org")
    result = alerts.alert(failed, "backup", **{"run": "true", "mail": "ops@example.org", "webhook": True, **wrong})  # type: ignore[arg-type]
    assert {each.id: each.ok for each in result.checks} == {"command": True, "mail": True, "webhook": True, way: False}

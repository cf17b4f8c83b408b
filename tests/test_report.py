"""The report: what is gathered, what the page says, that it is safe to open, and the fleet's page."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import demonstration
import pytest
from abathur_db import (
    backup,
    chart,
    database,
    fleet_page,
    markup,
    objects,
    page,
    page_tables,
    report,
    runs,
    schema,
    schema_diff,
    series,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from conftest import Cli
from databases import corrupt, run
from pages import Reader, words

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what is gathered of the demonstration: a healthy host with a history."""
    directory = tmp_path_factory.mktemp("demonstration")
    with demonstration.timers(directory):
        return report.gather(demonstration.make(directory, minutes=720, rows=500))


def fill(value: Any, text: str) -> Any:
    """Return data with each text in it replaced, but for times; keys stay, those of jobs are texts too."""
    if isinstance(value, dict):
        return {key: fill(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [fill(each, text) for each in value]
    return text if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\dT", value) else value


def test_a_new_database_has_a_page_that_says_what_is_not_there_yet(conf: Config, cli: Cli, tmp_path: Path) -> None:
    schema.init(conf)
    code, output, _ = cli("report", conf.database, "--output", tmp_path / "page.html")
    assert code == 0
    assert output.startswith(f"report: wrote {tmp_path}/page.html: ")
    said = words((tmp_path / "page.html").read_text())
    for sentence in (
        "There is no history yet",
        "No job has run yet",
        "There is no backup. Make one now",
        "There was no drill yet",
        "nothing is absent, nothing was added",
        "not measured",
    ):
        assert sentence in said


def test_the_page_is_for_its_owner_alone_and_appears_whole(conf: Config) -> None:
    schema.init(conf)
    assert report.report(conf, None).changed
    target = conf.state_directory / report.PAGE
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.stat().st_ino
    report.report(conf, None)
    assert target.stat().st_ino != before
    assert [each.name for each in conf.state_directory.iterdir() if "report" in each.name] == [report.PAGE]


def test_a_dry_run_gathers_the_data_and_writes_nothing(conf: Config) -> None:
    schema.init(conf)
    result = report.report(conf, None, dry_run=True)
    assert result.data["database"] == str(conf.database)
    assert not conf.state_directory.exists()


def test_a_page_that_cannot_be_written_is_a_sentence_and_leaves_nothing(conf: Config, tmp_path: Path) -> None:
    schema.init(conf)
    with pytest.raises(Failure, match=r"gone/page.html cannot be written by root \(uid 0\): No such file"):
        report.report(conf, tmp_path / "gone/page.html")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/page.html").mkdir()
    with pytest.raises(Failure, match="cannot be written"):
        report.report(conf, tmp_path / "full/page.html")
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["page.html"]


def test_a_healthy_host_is_said_to_be_so_in_one_sentence(demo: dict[str, Any]) -> None:
    sentence = page.sentence(demo)
    assert re.fullmatch(
        r"\S+ is healthy: all 18 checks passed, the newest backup was made .+ ago and a restore takes \d+\.\d s\.",
        sentence,
    )
    assert words(page.render(demo)).index(sentence) < 700


def test_the_page_shows_history_latencies_jobs_backups_and_drills(demo: dict[str, Any]) -> None:
    text = page.render(demo)
    said = words(text)
    for piece in (
        "Database",
        "limit 100 MB",
        "Growth a day",
        "Sessions: 14 active, 3 paused, 383 terminated.",
        "of 50 ms",
        "within budget",
        "10 sessions",
        "What failed in these days, the newest first (1 in all)",
        "backup needs 1.9 GB free",
        "the newest 14 are shown",
        "quick_check",
        "Recovery time",
        "drill done",
        "All checks",
    ):
        assert piece in said, piece
    labels = [attributes.get("aria-label") or "" for tag, attributes in Reader(text).tags if tag == "svg"]
    assert any(
        re.match(r"Write-ahead log, at its largest: .+ now, at most 1\d\d(\.\d)?\sMB since", each) for each in labels
    )
    assert len(labels) == 4 + 7 + 1


def test_a_failed_check_stands_at_the_top_with_its_next_step(demo: dict[str, Any]) -> None:
    bad = {
        "id": "backup_age",
        "ok": False,
        "expected": "a young one",
        "measured": "none",
        "hint": "make one",
        "warning": False,
    }
    sick = {**demo, "ok": False, "checks": [*demo["checks"], bad]}
    said = words(page.render(sick))
    assert f"{demo['host']} needs attention: 1 of 19 checks failed, first backup_age: none." in said
    assert said.index("What is wrong") < said.index("Growth and write-ahead log Database")
    bad["measured"] = "x" * 1000
    assert f"{'x' * page.SENTENCE}…." in words(page.render(sick))
    assert "Backup age none (expected: a young one) Next: make one" in said


def test_a_state_is_told_by_words_and_a_shape_not_by_colour_alone(demo: dict[str, Any]) -> None:
    text = page.render(demo)
    for kind in ("good", "bad", "warn"):
        for found in re.findall(rf'<span class="state {kind}">(.+?)</span> ([^<]*)</span>', text):
            assert found[0].endswith(f">{markup.GLYPHS[kind]}")
            assert found[1].strip()
    cells = re.findall(r'<td class="(good|bad|none)[^>]*>(.+?)</td>', text)
    assert len(cells) == 28 * 5
    assert all('<i class="sr">' in content for _, content in cells)


def test_every_table_has_a_caption_and_heads_and_every_picture_a_text(demo: dict[str, Any]) -> None:
    tags = Reader(page.render(demo)).tags
    count = {name: sum(tag == name for tag, _ in tags) for name in ("table", "caption", "thead", "h1", "main")}
    assert count["table"] == count["caption"] == count["thead"] > 5
    assert (count["h1"], count["main"]) == (1, 1)
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert all(
        attributes.get("role") == "img" and attributes.get("aria-label") for tag, attributes in tags if tag == "svg"
    )
    assert ("html", {"lang": "en"}) in tags


def test_the_page_loads_nothing_and_runs_nothing(demo: dict[str, Any]) -> None:
    text = page.render(demo)
    assert "<script" not in text
    assert not re.findall(r"(?:https?:)?//[a-z]", text)
    assert "url(" not in text
    assert "@import" not in text
    for _, attributes in Reader(text).tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))


@pytest.mark.parametrize("sick", [False, True])
def test_texts_from_the_database_and_the_records_are_only_shown_escaped(demo: dict[str, Any], sick: bool) -> None:
    """Every text in the data is hostile at once; times are left, to reach what is shown beside them."""
    harmless = Reader(page.render(demo))
    data = fill(demo, HOSTILE)
    # By these names the charts are found; everything else of them is hostile.
    for course, known in zip(data["series"], demo["series"], strict=True):
        course["name"] = known["name"]
    data["jobs"] = {f"{HOSTILE}{number}": each for number, each in enumerate(data["jobs"].values())}
    data["drift"] = [f"-{HOSTILE}", f"+{HOSTILE}", HOSTILE]
    data["backups"].append({"id": HOSTILE, "counts": False, "fault": HOSTILE})
    for check in data["checks"]:
        check["ok"] = not sick
    text = page.render(data)
    assert "<script" not in text
    assert "<img" not in text
    assert HOSTILE in Reader(text).text
    assert {tag for tag, _ in Reader(text).tags} - {tag for tag, _ in harmless.tags} <= {
        "pre",
        "del",
        "ins",
        "ul",
        "li",
    }
    for _, attributes in Reader(text).tags:
        assert not [name for name in attributes if name.startswith("on")]


def test_a_hostile_row_and_a_hostile_summary_reach_the_page_escaped(conf: Config, tmp_path: Path) -> None:
    """The same, from a real database and a real record."""
    schema.init(conf)
    connection = sqlite3.connect(conf.database)
    insert = "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, 1, ?)"
    connection.execute(insert, (runs.now(), "sessions", json.dumps({"status": HOSTILE})))
    connection.execute(insert, (runs.now(), HOSTILE, HOSTILE))
    connection.execute(insert, ("no time", "sessions", "[]"))
    connection.execute(f"CREATE TABLE {objects.quoted(HOSTILE)} (x)")
    connection.commit()
    connection.close()
    failed = {"command": "backup", "ok": False, "summary": HOSTILE, "invocation": "", "finished": runs.now()}
    runs.record(conf.state_directory, {**failed, "seconds": 1.0, "exit_code": 1})
    report.report(conf, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert Reader(text).text.count(HOSTILE) == 3


def test_ninety_days_at_five_minutes_are_thinned_in_sql(conf: Config) -> None:
    schema.init(conf)
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=90)
    connection = sqlite3.connect(conf.database)
    moments = [begin + timedelta(minutes=5 * step) for step in range(90 * 288)]
    rows = [(moment.isoformat(), "wal_bytes", float(step == 12_000)) for step, moment in enumerate(moments)]
    # SQLite's own spelling of a time, in the same column (schema facts, trap 14).
    rows += [(moment.strftime("%Y-%m-%d %H:%M:%S"), "database_bytes", 1e9) for moment in moments]
    connection.executemany("INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, ?, ?)", rows)
    connection.commit()
    found = series.courses(connection)
    connection.close()
    assert [course["name"] for course in found] == ["database_bytes", "wal_bytes"]
    for course in found:
        assert series.POINTS * 0.9 < len(course["points"]) <= series.POINTS + 1
    # A moment's peak is not lost in its mean.
    assert max(point[3] for point in found[1]["points"]) == 1
    assert found[0]["points"][0][0] >= begin.timestamp()
    assert len(json.dumps(found)) < 20_000


def test_labels_that_somebody_else_wrote_are_taken_as_one_label() -> None:
    assert series._labels('{"query": "q", "n": 1}') == {"query": "q", "n": "1"}
    assert series._labels("no json") == {"labels": "no json"}
    assert series._labels(None) == {}


def test_drift_is_a_diff_in_which_only_absence_is_bad(conf: Config) -> None:
    schema.init(conf)
    run(
        conf.database,
        "DROP INDEX idx_audit_task",
        "ALTER TABLE tasks ADD COLUMN colour TEXT",
        "CREATE TABLE notes (x)",
    )
    with database.opened(conf.database, 0, read_only=True) as connection:
        lines = schema_diff.diff(connection)
    changed = [line for line in lines if line[0] in "+-"]
    assert changed == ["-  index idx_audit_task (task_id, timestamp DESC)", "+  colour TEXT", "+table notes"]
    said = words(page.render(report.gather(conf)))
    assert "something is absent" in said
    run(conf.database, "CREATE INDEX idx_audit_task ON audit (task_id, timestamp DESC)")
    assert "nothing is absent @@" in words(page.render(report.gather(conf)))


def test_a_sick_database_still_has_a_page(conf: Config, cli: Cli) -> None:
    schema.init(conf)
    backup.backup(conf)
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    for each in database.sidecars(conf.database):
        each.unlink(missing_ok=True)
    corrupt(conf.database)
    conf.database.write_bytes(b"SQLite format 3\0" + bytes(4080))
    data = report.gather(conf)
    assert (data["drift"], data["series"]) == (None, [])
    assert words(page.render(data)).count("This cannot be read: ") == 2
    assert set(data["faults"]) == {"growth", "schema"}
    assert cli("report", conf.database)[0] == 0


def test_backups_that_do_not_count_are_shown_with_the_reason(conf: Config) -> None:
    schema.init(conf)
    made = backup.backup(conf).data["id"]
    next(conf.backup_directory.glob("*.json")).unlink()
    said = words(page.render(report.gather(conf)))
    assert f"{made} ✕ does not count its manifest abathur_{made}.json is gone" in said


def test_a_query_over_its_budget_is_shown_as_such(demo: dict[str, Any]) -> None:
    slow = json.loads(json.dumps(demo))
    slow["queries"][0]["load"]["p50_ms"] = 51.0
    assert "✕ over budget" in words(page.render(slow))
    for query in slow["queries"]:
        query["load"] = None
    assert "✕ over budget" not in words(page.render(slow))


def test_a_pause_in_the_measurements_is_a_gap_in_the_line() -> None:
    course: list[chart.Point] = [(0, 1), (10, 1), (20, 1), (100, 1), (110, 1)]
    assert [len(piece) for piece in chart.pieces(course)] == [3, 2]
    assert chart.line("x", course, str).count('class="line"') == 2
    assert chart.line("x", [(0.0, 0.0)], str).count('class="line"') == 1
    # Of a host of five minutes: within its picture, and said.
    for drawn in (
        chart.line("x", [(1e9, 5.0)], str),
        chart.spark([(1e9, 5.0)], 6.0, "x"),
        chart.line("x", course, str),
    ):
        across = [float(each) for each in re.findall(r"[ML](-?[\d.]+),", drawn)]
        assert across
        assert all(0 <= each <= 100 for each in across)
    assert "one measurement so far" in chart.line("x", [(1e9, 5.0)], str)
    assert "one measurement" not in chart.line("x", course, str)


def test_a_limit_far_away_is_said_and_not_drawn() -> None:
    near = chart.line("x", [(0, 50.0), (9, 60.0)], lambda value: f"{value:.0f}", limit=100)
    far = chart.line("x", [(0, 1.0), (9, 2.0)], lambda value: f"{value:.0f}", limit=100)
    assert 'class="limit"' in near
    assert 'class="limit"' not in far
    assert "limit 100" in far


@pytest.mark.parametrize(("value", "round_number"), [(0, 1), (1, 1), (1.2, 1.5), (7, 8), (123, 150), (9.1e9, 1e10)])
def test_a_scale_ends_at_a_round_number(value: float, round_number: float) -> None:
    assert chart.ceiling(value) == pytest.approx(round_number)


def test_times_are_said_as_people_say_them() -> None:
    assert markup.lasted(None) == "not known"
    assert [markup.lasted(each) for each in (2.44, 61, 600, 7200, 200_000)] == [
        "2.4 s",
        "61 s",
        "10 min",
        "2 h",
        "2 days",
    ]
    assert markup.ago("2026-11-24 10:00:00", "2026-11-24T10:00:30+00:00") == "just now"
    assert markup.ago(None, "2026-11-24T10:00:30+00:00") == "never"
    assert (markup.when(None), markup.when("soon")) == ("never", "soon")


def _luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_has_the_contrast_that_wcag_asks_for() -> None:
    """4.5 to 1 for text (WCAG 2.2, 1.4.3), on each ground that it stands on, in light and in dark."""
    style = (Path(page.__file__).parent / "page.css").read_text()
    schemes = re.findall(r":root \{(.+?)\}", style, re.DOTALL)[:2]
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})\b", scheme))
        pairs = [(text, ground) for text in ("ink", "muted", "accent", "limit") for ground in ("ground", "surface")]
        pairs += [
            (text, ground) for text in ("good", "bad", "warn") for ground in ("ground", "surface", f"{text}-wash")
        ]
        for text, ground in [*pairs, ("surface", "bad")]:
            lighter, darker = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


@pytest.fixture
def fleet(tmp_path: Path, demo: dict[str, Any]) -> Path:
    """Return a directory as the playbook leaves it: a healthy host, a sick one, a silent one, and strange answers."""
    bad = {"id": "wal_size", "ok": False, "expected": "less", "measured": HOSTILE, "hint": "", "warning": False}
    answers: dict[str, Any] = {
        "a-healthy": demo,
        "b-sick": {**demo, "ok": False, "checks": [*demo["checks"], bad], "status": {"free_bytes": 1}, "backups": []},
        "c-silent": {"unreachable": "Failed to connect to the host via ssh"},
        "d-strange": {"ok": True},
        "e-list": [],
        "f-poisoned": {**demo, "status": {**demo["status"], "database_bytes": HOSTILE}},
    }
    for name, answer in answers.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / report.DATA).write_text(json.dumps(answer))
    (tmp_path / "g-torn").mkdir()
    (tmp_path / "g-torn" / report.DATA).write_text("{")
    return tmp_path


def test_a_fleet_has_the_worst_first_and_nobody_is_left_out(fleet: Path, conf: Config, cli: Cli) -> None:
    (fleet / "c-silent" / report.PAGE).write_text("of yesterday")
    assert cli("fleet", fleet)[0] == 0
    answer = report.fleet(conf, fleet, []).as_dict()
    assert answer["data"]["hosts"] == ["c-silent", "d-strange", "e-list", "g-torn", "b-sick", "f-poisoned", "a-healthy"]
    assert answer["data"]["attention"] == answer["data"]["hosts"][:-1]
    text = (fleet / "fleet.html").read_text()
    said = words(text)
    assert "6 of 7 hosts in need of attention, 4 of them did not answer." in said
    assert "Failed to connect to the host via ssh" in said
    assert "is not a report of this version" in said
    assert "<script" not in text
    assert "<img" not in text
    links = [attributes["href"] for tag, attributes in Reader(text).tags if tag == "a"]
    assert links == ["#main", *(f"{name}/report.html" for name in ("b-sick", "f-poisoned", "a-healthy"))]
    assert not (fleet / "c-silent" / report.PAGE).exists()
    assert "a-healthy is healthy" in words((fleet / "a-healthy" / report.PAGE).read_text())


STRANGE: dict[str, Any] = {
    "nothing": None,
    "a text": HOSTILE,
    "half a letter": "\ud800",
    "a number": -1,
    "a number beyond all": 1e308,
    "a list": [],
    "an object": {},
    "a list of nothing": [None],
    "a truth": True,
}


def places_of(value: Any, *way: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value in a report; of a long list, to its first and its last."""
    if way:
        yield way
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places_of(each, *way, key)
    elif isinstance(value, list) and value:
        for number in range(len(value)) if len(value) <= 8 else (0, len(value) - 1):
            yield from places_of(value[number], *way, number)


def put(data: Any, way: tuple[Any, ...], value: Any) -> Any:
    """Return data with another value at a place."""
    key, *others = way
    copied = copy.copy(data)
    copied[key] = put(data[key], tuple(others), value) if others else value
    return copied


def test_whatever_a_host_tells_costs_one_part_of_its_page_and_no_other_host_s(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    """Every value of a report in turn is replaced by every strange one: that host's page is written, or it says why."""
    few = {**demo, "checks": demo["checks"][:3], "queries": demo["queries"][:1], "backups": demo["backups"][:2]}
    shown = ("database_bytes", "wal_bytes", "growth_bytes_per_day", "free_page_bytes", "query_seconds", "sessions")
    courses = {each["name"]: {**each, "points": each["points"][-2:]} for each in demo["series"]}
    few["series"] = [courses[name] for name in shown]
    few["jobs"] = {name: {**job, "runs": job["runs"][-2:]} for name, job in few["jobs"].items() if name == "drill"}
    few["drills"] = few["drills"][-2:]
    chance = random.Random(11)
    ways = list(places_of(few))
    assert len(ways) > 200
    for way in ways:
        for name in chance.sample(list(STRANGE), 3):
            data = {**put(few, way, STRANGE[name]), "host": "x", "name": "x"}
            (tmp_path / report.DATA).write_text(json.dumps(data))
            read = {**report._read(tmp_path / report.DATA), "name": "x", "host": "x"}
            if "unreachable" in read:
                assert way[0] in report.HEAD, way
                continue
            text = page.render(read)
            assert ("<script" not in text, text.count("<h2>") >= 7) == (True, True), way
            assert ("This cannot be read: " in text) == bool(read["faults"]), way
            listed = fleet_page.render(sorted([read, {**demo, "name": "y"}], key=fleet_page.badness), runs.now())
            assert (words(listed).count(" x "), "y/report.html" in listed) == (1, True), way


def test_a_report_that_is_poisoned_leaves_the_others_their_pages(fleet: Path, cli: Cli) -> None:
    """As a host can write it: what no JSON of the tool's holds."""
    good = (fleet / "a-healthy" / report.DATA).read_text()
    poison = {
        "h-deep": good.replace('"series": [', '"series": [' + "[" * 1500 + "]" * 1500 + ", ", 1),
        "i-infinite": re.sub(r'"points": \[\[', '"points": [[1, 9e999, Infinity, NaN], [', good, count=1),
        "j-empty": re.sub(r'"points": \[\[.*?\]\]', '"points": []', good, count=1),
        "k-large": re.sub(r'"bytes": \d+', '"bytes": 1' + "0" * 400, good, count=1),
        "l-long-ago": good.replace(demo_time(good), "0001-01-01T00:00:00+14:00", 1),
    }
    for name, text in poison.items():
        assert text != good, name
        (fleet / name).mkdir()
        (fleet / name / report.DATA).write_text(text)
    (fleet / "m-\udcff").mkdir()
    (fleet / "m-\udcff" / report.DATA).write_text(good)
    (fleet / "n-closed" / report.PAGE).mkdir(parents=True)
    (fleet / "n-closed" / report.DATA).write_text(good)
    code, _, errors = cli("fleet", fleet)
    assert (code, errors) == (0, "")
    said = words((fleet / "fleet.html").read_text())
    assert all(name in said for name in (*poison, "a-healthy", "b-sick", "n-closed"))
    for name in ("a-healthy", "b-sick", "j-empty", "m-\udcff"):
        assert (fleet / name / report.PAGE).is_file(), name


def demo_time(text: str) -> str:
    """Return the moment that a report was made."""
    return str(json.loads(text)["generated"])


def test_what_cannot_be_read_on_the_host_itself_costs_its_part(conf: Config, cli: Cli) -> None:
    schema.init(conf)
    backup.backup(conf)
    planted = conf.state_directory / "history/drill.jsonl"
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to("/etc/passwd")
    run(conf.database, "DROP TABLE metrics")
    code, output, _ = cli("report", conf.database, "--json")
    data = json.loads(output)["data"]
    assert (code, set(data["faults"])) == (0, {"growth", "jobs"})
    said = words((conf.state_directory / report.PAGE).read_text())
    # The table is absent for the other checks as well.
    assert "needs attention: 1 of 7 checks failed, first tables: 8 tables, lacking metrics." in said
    assert "This cannot be read: " in said
    assert f"{data['backups'][0]['id']}" in said


def test_a_host_of_the_fleet_that_left_nothing_is_on_the_page_and_a_former_one_is_not(
    fleet: Path, conf: Config
) -> None:
    result = report.fleet(conf, fleet, ["a-healthy", "new"])
    assert result.data == {"hosts": ["new", "a-healthy"], "attention": ["new"]}
    assert "nothing was gathered from it yet" in words((fleet / "fleet.html").read_text())


def test_a_healthy_fleet_is_said_to_be_so(demo: dict[str, Any]) -> None:
    text = fleet_page.render([{**demo, "name": "x/y <z>"}], runs.now())
    assert "All hosts are healthy." in words(text)
    assert 'href="x/y%20%3Cz%3E/report.html"' in text


def test_a_fleet_without_a_host_is_a_sentence(conf: Config, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"there is no HOST/report\.json in") as caught:
        report.fleet(conf, tmp_path, [])
    assert caught.value.code is Exit.USAGE


def test_the_jobs_of_a_database_of_ones_own_are_those_that_ran(conf: Config) -> None:
    schema.init(conf)
    run_of = {"command": "backup", "ok": True, "summary": "s", "invocation": "", "finished": runs.now(), "seconds": 1}
    runs.record(conf.state_directory, run_of)
    data = report.gather(conf)
    assert list(data["jobs"]) == ["backup"]
    assert "What failed" not in words(page.render(data))
    assert report.gather(replace(conf, owner=os.environ.get("USER") or "root"))["jobs"].keys() <= {"backup"}


def test_a_part_that_is_not_as_the_tool_writes_it_is_a_sentence(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Config) -> None:
        raise KeyError("url")

    schema.init(conf)
    monkeypatch.setattr(report, "_backups", wrong)
    data = report.gather(conf)
    assert data["faults"] == {"backups": "what was kept of it is not as this tool writes it (KeyError)"}
    assert "The database could not be read" in page_tables.drift({"drift": None})

"""What others wrote: every parser returns what is of its kind, or raises ValueError, and the tool uses no other."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from abathur_db import foreign
from databases import ROOT

NOISE = [
    *(None, True, 0, -1, 2**63, 10**400, 1.5, float("inf"), float("nan"), b"", b"\xff", b"{}", (), [], {}, object()),
    *("", "\0", "\udcff", "\ud800", "null", "true", "NaN", "Infinity", "-Infinity", "9e999", "1e-999", "9" * 5000),
    *("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, '"\\ud800"', '{"a": 1', "[9e999]"),
    *("0001-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31", "2026-W60", "24:00"),
    *("2026-11-28T00:00:00+99:00", "2026-02-30", "now", "١٢", " 12\n", "-5", "0x10", "1_000"),
]
"""What is in the databases, records and answers of others now and then."""

PARSERS: list[Callable[[Any], Any]] = [
    foreign.moment,
    lambda text: foreign.moment(text, zoned=True),
    foreign.value,
    foreign.record,
    lambda text: foreign.whole(text) if isinstance(text, str) else 0,
    foreign.is_number,
]


@pytest.mark.parametrize("parser", range(len(PARSERS)))
def test_a_parser_raises_nothing_but_a_value_error(parser: int) -> None:
    chance = random.Random(15)
    pieces = [*'[]{}":,0123456789-+TZ.eE \\u\0\ud800é', "true", "null", "2026-11-28", "T02:00:00", "9e99"]
    made = ["".join(chance.choices(pieces, k=chance.randrange(1, 30))) for _ in range(3000)]
    for each in [*NOISE, *made]:
        try:
            PARSERS[parser](each)
        except ValueError:
            continue


def test_a_moment_is_in_utc_and_can_be_moved_by_months() -> None:
    assert foreign.moment("2026-11-28T02:00:00+02:00") == datetime(2026, 11, 28, tzinfo=UTC)
    assert foreign.moment("2026-11-28 02:00:00") == datetime(2026, 11, 28, 2, tzinfo=UTC)
    for edge in ("0002-01-01", "9998-12-31T23:59:59"):
        for days in (-300, 300):
            assert foreign.moment(edge) + timedelta(days=days)
    for beyond in ("0001-12-31", "9999-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        with pytest.raises(ValueError, match="out of range"):
            foreign.moment(beyond)


def test_a_moment_without_a_time_zone_is_none_where_it_has_to_be_named() -> None:
    assert foreign.moment("2026-11-28T02:00:00Z", zoned=True).hour == 2
    with pytest.raises(ValueError, match="has no time zone"):
        foreign.moment("2026-11-28T02:00:00", zoned=True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[9e999]", "9e999 is no finite number"),
        ('{"a": NaN}', "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("9223372036854775808", "9223372036854775808 is a number of more than 64 bits"),
        ("[" * 1500 + "]" * 1500, "it has more than 64 levels"),
        ("[" * 65 + "]" * 65, "it has more than 64 levels"),
        (None, "it is no text"),
    ],
)
def test_json_beyond_the_limits_is_refused_by_what_it_is(text: object, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        foreign.value(text)


def test_json_within_the_limits_is_what_it_says() -> None:
    assert foreign.value('{"a": [1, -9223372036854775808, 2.5, null, "x"]}') == {"a": [1, -(2**63), 2.5, None, "x"]}
    deep = "[" * foreign.LEVELS + "]" * foreign.LEVELS
    assert str(foreign.value(deep)).replace(" ", "") == deep
    with pytest.raises(ValueError, match="it is not an object"):
        foreign.record("[]")


def test_a_whole_number_is_one_that_sqlite_can_count() -> None:
    assert (foreign.whole("12\n"), foreign.whole("000000000000001f", 16)) == (12, 31)
    for text in ("-1", "9223372036854775808", "1.0", ""):
        with pytest.raises(ValueError, match=r"out of range|invalid literal"):
            foreign.whole(text)


def test_a_number_is_finite_and_no_truth_value() -> None:
    assert [each for each in NOISE if foreign.is_number(each)] == [0, -1, 1.5]


PARSING = re.compile(r"json\.(loads?|JSONDecoder)|.+\.(fromisoformat|strptime)")


def test_no_module_parses_what_others_wrote_in_a_way_of_its_own() -> None:
    found = {
        f"{path.name}: {ast.unparse(node)}"
        for path in (ROOT / "scripts/abathur_db").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and PARSING.fullmatch(ast.unparse(node))
    }
    assert found == {"foreign.py: json.loads", "foreign.py: datetime.fromisoformat"}

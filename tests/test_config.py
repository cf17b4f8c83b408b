"""The configuration: exactly the known keys, of the right types, or a sentence that names the fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from abathur_db import config
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import toml


def test_a_configuration_file_is_read_as_it_was_written(conf: Config, tmp_path: Path) -> None:
    file = tmp_path / "abathur-db.toml"
    file.write_text(toml(conf))
    assert config.load(file) == conf


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"colour": "red"}, "has an unknown key: colour"),
    "a missing key": ({"busy_timeout_ms": None}, "lacks a key: busy_timeout_ms"),
    "a relative path": ({"database": "abathur.db"}, "has database = 'abathur.db', which is not an absolute path"),
    "a number as text": ({"busy_timeout_ms": "5000"}, "has busy_timeout_ms = '5000', which is not a whole number"),
    "a truth value as number": ({"busy_timeout_ms": True}, "busy_timeout_ms = True, which is not a whole number"),
    "a negative number": ({"wal_limit_mb": -1}, "has wal_limit_mb = -1"),
    "a text as list": ({"application_units": "x"}, "has application_units = 'x', which is not a list of names"),
    "an empty list": ({"validation_sessions": []}, "validation_sessions = [], which is not a list of whole numbers"),
    "a number as owner": ({"owner": 5}, "has owner = 5, which is not text"),
    "a relative textfile": ({"metrics_textfile": "a.prom"}, "'a.prom', which is not an absolute path, or empty"),
    "another compression": ({"backup_compression": "rar"}, "'rar', which is none of: zstd, gzip, none"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_the_configuration_is_named_with_its_key_and_value(conf: Config, case: str) -> None:
    changes, message = FAULTS[case]
    with pytest.raises(Failure) as caught:
        config.parse(toml(conf, **changes), "/etc/abathur-db.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("/etc/abathur-db.toml ")
    assert caught.value.code is Exit.USAGE


def test_text_that_is_not_toml_is_refused() -> None:
    with pytest.raises(Failure, match="here is not TOML"):
        config.parse("= 5", "here")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="there is no configuration at") as caught:
        config.load(tmp_path / "none.toml")
    assert "ansible-playbook deploy.yml" in caught.value.hint


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        config.load(tmp_path)

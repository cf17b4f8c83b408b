"""The configuration: exactly the known keys, of the right types, or a sentence that names the fault."""

from __future__ import annotations

from pathlib import Path

from abathur_db import config
from abathur_db.config import Config
from databases import toml


def test_a_configuration_file_is_read_as_it_was_written(conf: Config, tmp_path: Path) -> None:
    file = tmp_path / "abathur-db.toml"
    file.write_text(toml(conf))
    assert config.load(file) == conf

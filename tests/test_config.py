"""The configuration: exactly the known keys, of the right types, or a sentence that names the fault."""

from __future__ import annotations

import json
import tomllib
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from abathur_db import config, resources
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import toml
from hypothesis import given
from hypothesis import strategies as st


def test_a_configuration_file_is_read_as_it_was_written(conf: Config, tmp_path: Path) -> None:
    file = tmp_path / "abathur-db.toml"
    file.write_text(toml(conf))
    assert config.load(file) == conf


def read(text: str) -> Config | Failure:
    """Return what the parser makes of a text; anything but a configuration or a refusal is raised."""
    try:
        return config.parse(text, "here")
    except Failure as failure:
        return failure


KEYS = [field.name for field in fields(Config)]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["/", "//", "/.", "/..", "/srv/a", "/srv/a/..", "/var/lib/x/y.db", "zstd", "full", "root", "-"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


def in_toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {in_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    if isinstance(value, float):
        # Infinity and NaN have names of their own, and Python's are TOML's.
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(st.text())
def test_any_text_is_a_configuration_or_refused_as_wrong_usage(text: str) -> None:
    answer = read(text)
    assert isinstance(answer, Failure)
    assert (answer.code, str(answer).startswith("here ")) == (Exit.USAGE, True)
    assert answer.hint


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), values, max_size=6))
def test_whatever_the_values_it_is_a_configuration_of_the_right_types_or_refused(changes: dict[str, Any]) -> None:
    own = tomllib.loads(resources.development_profile()) | changes
    answer = read("".join(f"{json.dumps(name)} = {in_toml(each)}\n" for name, each in own.items() if each is not None))
    if isinstance(answer, Failure):
        assert answer.code is Exit.USAGE
        return
    for name, kind in typing.get_type_hints(Config).items():
        value = getattr(answer, name)
        assert isinstance(value, typing.get_origin(kind) or kind), name
        assert kind is not int or 0 <= value <= config.LARGEST
        assert kind is not Path or (value.is_absolute() and value.name and ".." not in value.parts)
    assert answer.owner != "root"
    # What was read can be written and is read as the same.
    assert read(toml(answer)) == answer


paths = st.lists(
    st.text(st.characters(exclude_categories=["C"], exclude_characters='/"\\'), min_size=1, max_size=9).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=2,
    max_size=4,
).map(lambda parts: "/".join(["/srv", *parts]))
sound = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(0, config.LARGEST) for name, kind in typing.get_type_hints(Config).items() if kind is int},
        "database": paths,
        "backup_directory": paths,
        "application_units": st.lists(st.from_regex(r"[a-z][a-z0-9:_.@-]{0,9}\.service", fullmatch=True), max_size=3),
        "validation_sessions": st.lists(st.integers(1, config.LARGEST), min_size=1, max_size=3),
        "backup_compression": st.sampled_from(config.CHOICES["backup_compression"]),
    },
)


def test_a_command_in_a_hint_names_a_database_of_ones_own_and_not_that_of_the_host(conf: Config) -> None:
    own, host = replace(conf, database=Path("/srv/my own/a.db")), replace(conf, owner="abathur")
    assert own.command("init") == own.bring_up == "abathur-db init '/srv/my own/a.db'"
    assert own.command("restore", "latest") == "abathur-db restore latest --database '/srv/my own/a.db'"
    assert own.job("backup") == "abathur-db backup '/srv/my own/a.db'"
    assert host.command("init") == "abathur-db init"
    assert host.command("restore", "latest") == "abathur-db restore latest"
    assert host.job("backup") == "systemctl start abathur-db@backup"
    assert host.bring_up == "deploy again: ansible-playbook deploy.yml"


@given(sound)
def test_every_sound_value_is_read_as_it_was_written(changes: dict[str, Any]) -> None:
    own = tomllib.loads(resources.development_profile()) | changes
    answer = read("".join(f"{name} = {in_toml(each)}\n" for name, each in own.items()))
    assert isinstance(answer, Config), answer
    for name, value in changes.items():
        assert getattr(answer, name) == (Path(value) if name in ("database", "backup_directory") else value)


@given(st.sampled_from(["database", "backup_directory", "state_directory"]), st.sampled_from(["/", "//", "/./"]))
def test_no_spelling_of_a_path_gets_data_into_a_directory_of_the_system(name: str, slash: str) -> None:
    own = tomllib.loads(resources.development_profile())
    apart = {"owner": "abathur", "database": "/srv/a/a.db", "backup_directory": "/srv/b", "state_directory": "/srv/c"}
    own |= {**apart, "install_directory": "/opt/d"}
    assert isinstance(read("".join(f"{key} = {in_toml(each)}\n" for key, each in own.items())), Config)
    for directory in ("/", "/etc", "/etc/abathur", "/var/lib", "/usr/lib/abathur", "/run/abathur", "/srv", "/home/me"):
        spelt = directory.replace("/", slash) + ("/a.db" if name == "database" else "")
        answer = read("".join(f"{key} = {in_toml(each)}\n" for key, each in (own | {name: spelt}).items()))
        assert isinstance(answer, Failure), spelt

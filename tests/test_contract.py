"""No fact is said twice without a test that compares: defaults, specs, template, dataclass, README, job table."""

from __future__ import annotations

import ast
import json
import re
import tomllib
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from abathur_db import cli, config, release, resources
from abathur_db.config import Config
from databases import ROOT
from variables import defaults, load, specs

import docs

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
KINDS = {"str": str, "path": str, "int": int, "bool": bool, "list": list, "dict": dict}
# The README of a database of one's own says why these differ from a host's.
OF_THE_HOST = {"database", "backup_directory", "state_directory", "install_directory"} | {
    "owner",
    "backup_owner",
    "application_units",
}


def rendered() -> dict[str, Any]:
    """Return the host's configuration as Ansible renders it from the defaults."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = json.dumps
    text = (ROOT / "roles/abathur_db/templates/abathur-db.toml.j2").read_text()
    return tomllib.loads(environment.from_string(text).render(ansible_managed="x", **defaults("abathur_db")))


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_has_a_default_and_a_specification(role: str) -> None:
    assert set(defaults(role)) == set(specs(role))


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_of_the_specified_type_and_among_its_choices(role: str) -> None:
    for name, option in specs(role).items():
        value = defaults(role)[name]
        templated = isinstance(value, str) and "{{" in value
        assert templated or type(value) is KINDS[option["type"]], name
        assert value in option.get("choices", [value]), name
        assert option["description"].endswith("."), name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_carries_its_roles_name(role: str) -> None:
    assert [name for name in defaults(role) if not name.startswith(f"{role}_")] == []


def test_a_host_s_configuration_made_from_the_defaults_is_one_that_the_tool_reads() -> None:
    text = "".join(f"{name} = {__import__('json').dumps(value)}\n" for name, value in rendered().items())
    read = config.parse(text, "the template")
    assert str(read.database) == defaults("abathur_db")["abathur_db_database"]


def test_the_configuration_has_the_keys_of_the_dataclass_in_its_order() -> None:
    assert list(rendered()) == [field.name for field in fields(Config)]


def test_a_database_of_ones_own_gets_the_same_values_as_a_host() -> None:
    own = tomllib.loads(resources.development_profile())
    host = rendered()
    assert set(own) == set(host)
    assert {name: own[name] for name in own if name not in OF_THE_HOST} == {
        name: host[name] for name in host if name not in OF_THE_HOST
    }


def test_the_choices_of_the_specification_are_those_of_the_tool() -> None:
    found = {
        name.removeprefix("abathur_db_"): tuple(option["choices"])
        for name, option in specs("abathur_db").items()
        if "choices" in option
    }
    assert found == config.CHOICES


def test_the_types_of_the_specification_are_those_of_the_dataclass() -> None:
    wanted = {str: "str", Path: "path", int: "int", list[str]: "list", list[int]: "list"}
    for name, kind in typing.get_type_hints(Config).items():
        assert specs("abathur_db")[f"abathur_db_{name}"]["type"] == wanted[kind], name


def test_every_job_is_a_command_that_locks_and_records() -> None:
    jobs = defaults("abathur_maintenance")["abathur_maintenance_jobs"]
    assert {"backup", "analyze", "vacuum", "integrity-check", "drill", "metrics", "retain", "replication"} <= set(jobs)
    assert set(jobs) <= set(specs("abathur_maintenance")["abathur_maintenance_jobs"]["options"])
    # Neither waits for another job: the collector (tests/test_metrics.py), and the proof that changes arrive.
    assert [job for job in jobs if not (cli.COMMANDS[job].lock or job in ("metrics", "replication"))] == []
    assert [job for job in jobs if not cli.COMMANDS[job].recorded] == []


def test_what_is_recorded_among_the_backups_is_what_runs_as_their_owner() -> None:
    found = {name for name, command in cli.COMMANDS.items() if command.runs_as is cli.BACKUPS}
    assert found == set(config.BY_BACKUP_OWNER)


def test_the_job_that_changes_rows_of_the_application_is_off_until_it_is_asked_for() -> None:
    assert defaults("abathur_maintenance")["abathur_maintenance_disabled_jobs"] == ["retain"]


def test_the_mark_of_a_unit_is_in_every_template_and_the_same_for_role_and_tool() -> None:
    assert load("roles/abathur_maintenance/vars/main.yml")["__abathur_maintenance_mark"] == release.OURS.pattern
    templates = [each for kind in ("service", "timer") for each in ROOT.glob(f"roles/*/templates/*.{kind}.j2")]
    assert len(templates) > 8
    for each in templates:
        text = each.read_text().replace("{{ item.key }}", "backup")
        assert release.OURS.search(text), each
        # Those of deploys before there was a mark are known as well; what pulls was never looked for.
        if "pull" not in each.name:
            assert release.OURS.search(text.replace("# Made by", "")), each


def test_no_two_jobs_begin_at_one_moment() -> None:
    jobs = defaults("abathur_maintenance")["abathur_maintenance_jobs"]
    assert len({job["calendar"] for job in jobs.values()}) == len(jobs)


def test_the_job_table_of_the_example_is_that_of_the_role() -> None:
    text = (ROOT / "inventories/example/group_vars/abathur.yml").read_text()
    table = re.findall(r"^# (abathur_maintenance_jobs:\n(?:#   .*\n)+)", text, re.MULTILINE)
    shown = yaml.safe_load(table[0].replace("\n# ", "\n"))
    assert shown["abathur_maintenance_jobs"] == defaults("abathur_maintenance")["abathur_maintenance_jobs"]


def test_what_the_example_sets_are_variables_of_the_roles() -> None:
    text = (ROOT / "inventories/example/group_vars/abathur.yml").read_text()
    named = set(re.findall(r"^#? ?(abathur_\w+):", text, re.MULTILINE))
    assert len(named) > 10
    assert named - {name for role in ROLES for name in defaults(role)} == set()


def test_a_host_in_pull_mode_has_the_controller_s_versions() -> None:
    controller, host = (
        set(re.findall(r"^\S+==\S+", (ROOT / each).read_text(), re.MULTILINE))
        for each in ("requirements.txt", "roles/abathur_pull/files/requirements.txt")
    )
    assert host - controller == set()


def test_the_generated_parts_of_the_readme_are_up_to_date() -> None:
    text = docs.README.read_text()
    assert docs.render(text) == text, "run: make docs"


def test_every_command_that_the_readme_names_exists() -> None:
    text = docs.README.read_text()
    named = set(re.findall(r"abathur-db ([a-z][a-z-]+)", text)) - {"COMMAND"}
    assert named - set(cli.COMMANDS) == set()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) - targets == set()
    playbooks = set(re.findall(r"(playbooks/[a-z]+\.yml)", text))
    assert [name for name in playbooks if not (ROOT / name).exists()] == []


def test_the_commands_that_take_no_database_are_named_in_the_readme() -> None:
    named = re.search(r"as `--database PATH`\); (.*?) take none\.", docs.README.read_text())
    assert named
    without = {name for name, command in cli.COMMANDS.items() if not command.takes_database}
    assert without - set(re.findall(r"`([a-z-]+)`", named[1])) == set()


def test_every_alert_that_the_readme_names_is_a_rule() -> None:
    groups = load("roles/abathur_monitoring/files/abathur.rules.yml")["groups"]
    rules = {rule["alert"] for group in groups for rule in group["rules"]}
    named = set(re.findall(r"`(Abathur[A-Z]\w+)`", docs.README.read_text()))
    assert len(named) > 3
    assert named - rules == set()


def test_the_readme_names_the_least_version_of_ansible_that_the_roles_ask_for() -> None:
    asked = {load(f"roles/{role}/meta/main.yml")["galaxy_info"]["min_ansible_version"] for role in ROLES}
    named = set(re.findall(r"needs ansible-core (\S+) or later", docs.README.read_text()))
    assert asked == named


def test_no_argument_of_a_command_takes_the_place_of_another_one() -> None:
    for name, command in cli.COMMANDS.items():
        added = [flag.lstrip("-") if not extra.get("dest") else extra["dest"] for flag, extra in command.arguments]
        assert not set(added) & {"command", "database", "config", "json", "dry_run"}, name
        assert len(set(added)) == len(added), name


def test_every_file_that_the_readme_links_to_is_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", docs.README.read_text())
    assert "docs/bench-1gb.svg" in linked
    assert [each for each in linked if not (docs.README.parent / each).exists()] == []


def imported(module: Path) -> list[str]:
    """Return the names of what a module imports, wherever in it: of modules, and of what is taken out of them."""
    found = []
    for each in ast.walk(ast.parse(module.read_text())):
        if isinstance(each, ast.ImportFrom):
            found += [f"{each.module or ''}.{alias.name}" for alias in each.names]
        elif isinstance(each, ast.Import):
            found += [alias.name for alias in each.names]
    return found


def test_no_test_module_takes_anything_from_another_one() -> None:
    """What two of them need stands in a helper module, so that each runs alone and none is collected by the way."""
    folders = [ROOT / "tests", ROOT / "faults", *ROOT.glob("molecule/*/tests")]
    modules = [each for folder in folders for each in sorted(folder.rglob("*.py"))]
    assert len({each.parent for each in modules if each.name.startswith("test_")}) > 5
    named = [(each, name) for each in modules for name in imported(each)]
    taken = [f"{each.relative_to(ROOT)} imports {name}" for each, name in named if re.search(r"(^|\.)test_", name)]
    assert taken == []


RUNS = ("quick", "test", "test-all")


def shown_by(path: str) -> str:
    """Return the first run that shows what stands in a test module or a scenario."""
    text = (ROOT / path).read_text() if path.endswith(".py") else ""
    if "pytest.mark.machine" in text:
        return "test-all"
    return "quick" if path.startswith("tests/") and "pytest.mark.engine" not in text else "test"


def test_each_promise_names_the_run_that_shows_it() -> None:
    promises = docs.README.read_text().partition("## Promises")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in promises.splitlines() if line.startswith("| ")]
    rows = [cells for cells in rows if not cells[0].startswith(("| Promise", "| ---"))]
    assert len(rows) > 15
    paths: list[str] = []
    for cells in rows:
        runs = re.findall(r"`([\w-]+)`", cells[-1])
        assert runs, cells[0]
        assert set(runs) <= set(RUNS), cells[0]
        # A row without a path is shown by the same tests as the one above it.
        paths = re.findall(r"`((?:tests|faults|molecule)/[\w/.]+)`", " ".join(cells[1:])) or paths
        assert all((ROOT / path).exists() for path in paths), cells[0]
        assert runs[0] == max(map(shown_by, paths), key=RUNS.index), cells[0]


def test_the_parts_of_the_faults_are_all_of_them_and_each_once() -> None:
    lines = re.findall(r"^FAULTS_\w+ := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = sorted(path for line in lines for path in line.split())
    assert named == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("faults/test_*.py"))

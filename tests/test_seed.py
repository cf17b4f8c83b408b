"""Seeds: written once, updated when they change, never over an operator's change; each write is audited."""

from __future__ import annotations

import json
from typing import Any

import pytest
from abathur_db import resources, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure
from databases import run, value

SEEDS = {
    ("app:abathur:agent_instructions", "default_workflow", "procedural"): {
        "steps": [
            "Read and analyze task requirements",
            "Retrieve relevant context from memory",
            "Execute task with best practices",
            "Update session state and memory",
            "Log comprehensive audit trail",
        ],
        "error_handling": "Always provide detailed error messages and rollback on failure",
        "logging": "Comprehensive audit logging enabled",
    },
    ("app:abathur:config", "memory_lifecycle_policies", "procedural"): {
        "episodic_ttl_days": 90,
        "semantic_permanent": True,
        "procedural_versioned": True,
        "consolidation_frequency": "weekly",
        "archival_after_days": 365,
    },
    ("app:abathur:defaults", "user_preference_template", "semantic"): {
        "communication_style": "balanced",
        "technical_level": "intermediate",
        "response_length": "moderate",
        "code_comments": True,
    },
}

WORKFLOW = "app:abathur:agent_instructions/default_workflow"


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)


def changed(**to: Any) -> tuple[dict[str, Any], ...]:
    """Return the seeds as a later release could have them."""
    first, *others = resources.seeds()
    return ({**first, "value": {**first["value"], **to}}, *others)


def test_the_three_seeds_are_exactly_those_of_the_design(conf: Config) -> None:
    seed.seed(conf)
    found = {
        (namespace, key, kind): json.loads(text)
        for namespace, key, kind, text in (
            json.loads(
                value(
                    conf.database,
                    f"SELECT json_array(namespace, key, memory_type, value) FROM memory_entries LIMIT 1 OFFSET {row}",
                )
            )
            for row in range(value(conf.database, "SELECT count(*) FROM memory_entries"))
        )
    }
    assert found == SEEDS


def test_seeds_are_signed_by_system_and_each_leaves_its_audit_row(conf: Config) -> None:
    seed.seed(conf)
    signed = "SELECT count(*) FROM memory_entries WHERE created_by = 'system' AND updated_by = 'system' AND version = 1"
    audited = (
        "SELECT count(*) FROM audit JOIN memory_entries ON memory_entries.id = memory_entry_id"
        " WHERE action_type = 'seed' AND memory_operation_type = 'create' AND memory_namespace = namespace"
    )
    assert (value(conf.database, signed), value(conf.database, audited)) == (3, 3)


def test_a_second_seed_changes_nothing(conf: Config) -> None:
    assert seed.seed(conf).changed
    result = seed.seed(conf)
    assert (result.changed, result.summary) == (False, "all 3 seeds are there")
    assert value(conf.database, "SELECT count(*) FROM audit") == 3


def test_a_dry_run_names_the_seeds_and_writes_none(conf: Config) -> None:
    result = seed.seed(conf, dry_run=True)
    assert result.changed
    assert result.summary.startswith(f"would write {WORKFLOW}")
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 0


def test_a_dry_run_plans_all_seeds_where_there_is_no_database_or_no_table_yet(conf: Config) -> None:
    run(conf.database, "DROP TABLE audit; DROP TABLE memory_entries")
    assert set(seed.seed(conf, dry_run=True).data["seeds"].values()) == {"insert"}
    conf.database.unlink()
    assert set(seed.seed(conf, dry_run=True).data["seeds"].values()) == {"insert"}


def test_a_seed_that_changed_becomes_a_new_version(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.seed(conf)
    later = changed(logging="Brief")
    monkeypatch.setattr(resources, "seeds", lambda: later)
    result = seed.seed(conf)
    assert result.data["seeds"][WORKFLOW] == "update"
    newest = "FROM memory_entries WHERE key = 'default_workflow' ORDER BY version DESC LIMIT 1"
    assert value(conf.database, f"SELECT version {newest}") == 2
    assert value(conf.database, f"SELECT value ->> 'logging' {newest}") == "Brief"
    operation = "SELECT memory_operation_type FROM audit ORDER BY id DESC LIMIT 1"
    assert value(conf.database, operation) == "update"


OPERATORS = {
    "a changed value": "UPDATE memory_entries SET value = '{\"mine\": 1}' WHERE key = 'default_workflow'",
    "a value that is no JSON": "PRAGMA ignore_check_constraints = ON;"
    "UPDATE memory_entries SET value = 'mine' WHERE key = 'default_workflow'",
    "a new version": "INSERT INTO memory_entries (namespace, key, value, memory_type, version) VALUES"
    " ('app:abathur:agent_instructions', 'default_workflow', '{\"mine\": 1}', 'procedural', 2)",
    "a deletion": "UPDATE memory_entries SET is_deleted = 1 WHERE key = 'default_workflow'",
}


@pytest.mark.parametrize("case", OPERATORS)
def test_what_an_operator_changed_is_left_alone_and_said(
    conf: Config, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    seed.seed(conf)
    run(conf.database, OPERATORS[case])
    later = changed(logging="Brief")
    monkeypatch.setattr(resources, "seeds", lambda: later)
    before = value(conf.database, "SELECT group_concat(id || value) FROM memory_entries")
    result = seed.seed(conf)
    assert (result.ok, result.changed) == (True, False)
    assert result.summary == f"left alone, because an operator changed it: {WORKFLOW}"
    assert value(conf.database, "SELECT group_concat(id || value) FROM memory_entries") == before


def test_a_value_that_only_another_spelling_of_ours_is_not_a_change(conf: Config) -> None:
    seed.seed(conf)
    run(conf.database, "UPDATE memory_entries SET value = json(value)")
    assert set(seed.seed(conf).data["seeds"].values()) == {"keep"}


def test_seeding_needs_a_database(conf: Config) -> None:
    conf.database.unlink()
    with pytest.raises(Failure, match="there is no database at") as caught:
        seed.seed(conf)
    assert "abathur-db init" in caught.value.hint

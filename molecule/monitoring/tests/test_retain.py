"""The job retain, once it is enabled: through its unit, in its sandbox."""

from __future__ import annotations

from typing import Any

OLD = (
    "INSERT OR REPLACE INTO memory_entries (namespace, key, value, memory_type, updated_at)"
    " VALUES ('user:1', 'old', '{}', 'episodic', '2020-01-01 00:00:00')"
)


def test_an_old_episodic_memory_is_soft_deleted_and_audited(host: Any, query: Any) -> None:
    assert host.service("abathur-db@retain.timer").is_enabled
    query(OLD)
    host.check_output("systemctl start abathur-db@retain.service")
    assert query("SELECT is_deleted FROM memory_entries WHERE key = 'old'") == [[1]]
    audited = "SELECT count(*) FROM audit JOIN memory_entries ON memory_entries.id = memory_entry_id"
    assert query(f"{audited} WHERE action_type = 'retain' AND key = 'old'") == [[1]]
    assert query("SELECT count(*) FROM memory_entries WHERE memory_type <> 'episodic' AND is_deleted = 1") == [[0]]

"""The job retain, once it is enabled: through its unit, in its sandbox."""

from __future__ import annotations

import base64
from typing import Any

OLD = """
import sqlite3
connection = sqlite3.connect("/var/lib/abathur/abathur.db")
connection.execute(
    "INSERT OR REPLACE INTO memory_entries (namespace, key, value, memory_type, updated_at)"
    " VALUES ('user:1', 'old', '{}', 'episodic', '2020-01-01 00:00:00')"
)
connection.commit()
"""


def test_an_old_episodic_memory_is_soft_deleted_and_audited(host: Any, query: Any) -> None:
    assert host.service("abathur-db@retain.timer").is_enabled
    encoded = base64.b64encode(OLD.encode()).decode()
    host.check_output(f"echo {encoded} | base64 -d | runuser -u abathur -- python3 -")
    host.check_output("systemctl start abathur-db@retain.service")
    assert query("SELECT is_deleted FROM memory_entries WHERE key = 'old'") == [[1]]
    audited = "SELECT count(*) FROM audit JOIN memory_entries ON memory_entries.id = memory_entry_id"
    assert query(f"{audited} WHERE action_type = 'retain' AND key = 'old'") == [[1]]
    assert query("SELECT count(*) FROM memory_entries WHERE memory_type <> 'episodic' AND is_deleted = 1") == [[0]]

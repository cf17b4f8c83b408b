-- purpose: the newest version of one memory
-- index: idx_memory_namespace_key_version
-- budget_ms: 20
-- sample: SELECT namespace, key FROM memory_entries LIMIT 100
SELECT * FROM memory_entries
WHERE namespace = :namespace AND key = :key AND is_deleted = 0
ORDER BY version DESC LIMIT 1

-- purpose: memories of a namespace and everything below it (a range seeks, LIKE 'x%' would scan)
-- index: idx_memory_namespace_prefix
-- budget_ms: 50
-- sample: SELECT namespace AS prefix FROM memory_entries LIMIT 100
SELECT * FROM memory_entries
WHERE namespace >= :prefix AND namespace < :prefix || char(0x10FFFF) AND is_deleted = 0
ORDER BY namespace, updated_at DESC LIMIT 100

-- purpose: the next pending task, by priority, then age
-- index: idx_tasks_status_priority
-- budget_ms: 50
-- sample: SELECT 'pending' AS status
SELECT * FROM tasks WHERE status = :status ORDER BY priority DESC, submitted_at LIMIT 1

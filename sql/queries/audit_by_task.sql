-- purpose: what was done for one task, the newest first
-- index: idx_audit_task
-- budget_ms: 50
-- sample: SELECT DISTINCT task_id FROM audit WHERE task_id IS NOT NULL LIMIT 100
SELECT * FROM audit WHERE task_id = :task_id ORDER BY timestamp DESC LIMIT 100

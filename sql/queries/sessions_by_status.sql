-- purpose: sessions in one status, the last updated first
-- index: idx_sessions_status_updated
-- budget_ms: 50
-- sample: SELECT DISTINCT status FROM sessions LIMIT 5
SELECT * FROM sessions WHERE status = :status ORDER BY last_update_time DESC LIMIT 100

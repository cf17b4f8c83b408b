-- purpose: one session by its id
-- index: sqlite_autoindex_sessions_1
-- budget_ms: 10
-- sample: SELECT id FROM sessions LIMIT 100
SELECT * FROM sessions WHERE id = :id

-- purpose: the course of one metric
-- index: idx_metrics_name_timestamp
-- budget_ms: 50
-- sample: SELECT 'database_bytes' AS metric_name
SELECT * FROM metrics WHERE metric_name = :metric_name ORDER BY timestamp DESC LIMIT 100

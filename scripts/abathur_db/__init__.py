"""abathur-db: builds, checks and maintains the SQLite memory store of Abathur."""

__version__ = "0.1.0"

"""A throwaway copy of the database, made by the backup path: what would take long on the live file is done on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from abathur_db import database, host, progress, proof
from abathur_db.config import Config


@contextmanager
def clone(config: Config) -> Iterator[Path]:
    """Lend a closed copy of the database, of one moment; it is gone at the end, also after an error.

    Raises Failure when there is no space for it, and as database.snapshot does.
    """
    # With its log, which may be larger than the database, and whose rows the copy has as well.
    size = database.size(config.database)
    with proof.scratch(config, "clone.db") as copy:
        host.require_free(copy, size + config.minimum_free_mb * host.MB, "a copy of the database")
        with host.half_of_the_processors(), progress.shown("copy", size) as done:
            database.snapshot(config.database, copy, config.busy_timeout_ms, done)
        yield copy

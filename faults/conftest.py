"""Shared by the fault suite: the seed that repeats a run."""

from __future__ import annotations

from faults import moments


def pytest_report_header() -> str:
    """Say how to repeat this run, moment by moment."""
    return f"faults: the moments are drawn from SEED={moments.SEED}"

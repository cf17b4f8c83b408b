"""Shared by the fault suite: the seed that repeats a run, and the whole machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import testhost
import testvm

from faults import hosts, moments
from faults.hosts import Host

MACHINE = "faults-machine"


def pytest_report_header() -> str:
    """Say how to repeat this run, moment by moment."""
    return f"faults: the moments are drawn from SEED={moments.SEED}"


@pytest.fixture
def machine(deployed: Host) -> Host:
    """Give a whole machine with the bundle deployed and the writers' program on it; it runs."""
    if not testhost.alive(deployed.name):
        # The test before this one failed while it was off.
        testvm.boot(deployed.name)
    return deployed


@pytest.fixture(scope="session")
def deployed() -> Iterator[Host]:
    """Make the machine, once."""
    testvm.create(MACHINE, "bookworm")
    try:
        host = Host(MACHINE)
        with hosts.inventory(MACHINE) as path:
            hosts.ended_well(hosts.playbook(path, "deploy.yml", *hosts.DEPLOY))
        host.install_application()
        yield host
    finally:
        testhost.destroy(MACHINE)

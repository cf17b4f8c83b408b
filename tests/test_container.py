"""The Containerfile: built without a network from a base given as an argument, and a first init in it."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trees
from databases import ROOT, value

Podman = Callable[..., str]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Run podman with a storage of its own, gone at the end; on old cgroups, hence cgroupfs and runc."""
    # Not below pytest's directory: the path of podman's socket has to be short.
    home = Path(tempfile.mkdtemp(prefix="abathur-podman-"))
    options = [f"--root={home}/root", f"--runroot={home}/run", "--storage-driver=vfs", "--cgroup-manager=cgroupfs"]

    def run(*arguments: str | Path) -> str:
        command = ["podman", *options, "--runtime=runc", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done.stdout

    yield run
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def image(podman: Podman) -> str:
    """Build the image over the tree of the test hosts, which has Python and zstd."""
    subprocess.run([sys.executable, "scripts/build.py"], cwd=ROOT, check=True, capture_output=True)
    tree = trees.tree("trixie")
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        subprocess.run(["tar", "-C", tree, "-cf", archive.name, "."], check=True)
        podman("import", "--quiet", archive.name, "localhost/base")
    # One layer, where each instruction's would be a copy of the whole tree.
    podman(
        "build",
        "--quiet",
        "--layers=false",
        "--isolation=chroot",
        "--build-arg=BASE=localhost/base",
        "--tag=abathur-db",
        ".",
    )
    return "localhost/abathur-db"


def test_a_first_init_in_the_container_leaves_the_database_outside(podman: Podman, image: str, tmp_path: Path) -> None:
    # A container may not ask for more than this machine allows.
    limits = [f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc")]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 1024
    container = ["run", "--rm", "--network=none", *limits, f"--volume={tmp_path}:/data", image]
    assert podman(*container, "init", "/data/abathur.db") == "init: created /data/abathur.db at schema version 1\n"
    assert "3 seeds" not in podman(*container, "seed", "/data/abathur.db")
    assert podman(*container, "backup", "/data/abathur.db").startswith("backup: abathur_")
    assert value(tmp_path / "abathur.db", "SELECT count(*) FROM memory_entries") == 3


def test_the_image_holds_the_tool_and_shows_its_help(podman: Podman, image: str) -> None:
    config = podman("image", "inspect", "--format={{.Config.Entrypoint}} {{.Config.Cmd}}", image)
    assert config.strip() == "[/usr/local/bin/abathur-db] [--help]"

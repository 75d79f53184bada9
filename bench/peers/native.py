"""
Programs in other languages beside a cache: built on first use, each in a process of its own that answers line by line.

The sources are in `foreign/`.  What is built stays in the user's cache folder until its sources, its compiler, its flags or the
CPU change.  A compiler or a library that is missing raises `SkippedError` with the command that installs it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import SkippedError

SOURCES = Path(__file__).parents[1] / "foreign"
BUILT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jitslab-bench"
FLAGS = ("-O3", "-march=native")
CRATES = Path("/usr/share/cargo/registry")  # where Debian's packages put the sources of crates
BUILD_SECONDS = 300


class Peer:
    """A running program: `ask` writes a line and returns the integers of the line that it answers."""

    def __init__(self, program: Path, *arguments: object, **environment: str) -> None:
        command, around = [str(program), *map(str, arguments)], os.environ | environment
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=around)

    def ask(self, *words: object) -> list[int]:
        """Return what it answers; raises `RuntimeError` if it ended instead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}")
        return [int(word) for word in line.split()]

    def close(self) -> None:
        """End the program by the end of its input."""
        self.process.communicate()


def rest() -> None:
    """
    Sleep before a run of a contender in this process, as a peer has slept that waited for its line.

    On a busy machine who has just slept is let run, and who has not is interrupted.
    """
    time.sleep(0.001)


# --- Builds ---


def compiler(name: str, install: str) -> str:
    """Return the path of a compiler; raises `SkippedError` if there is none."""
    found = shutil.which(name)
    if found is None:
        raise SkippedError(f"no {name}: {install}")
    return found


def done(command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output kept."""
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, **more)


def folder_of(command: Sequence[str], sources: Sequence[Path]) -> Path:
    """Return the folder of a build, named by all that its result depends on."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: .+", cpu.read_text()) if cpu.exists() else None
    version = done([command[0], "--version"]).stdout
    digest = hashlib.sha256("\0".join([*command, version, platform.machine(), model[0] if model else ""]).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return BUILT / digest.hexdigest()[:16]


def build(name: str, command: Sequence[str], sources: Sequence[Path], why: str, headers: Sequence[Path] = ()) -> Path:
    """Return a program that a C or C++ compiler makes of its sources and headers; `why` says how to get what they include."""
    folder = folder_of(command, [*sources, *headers])
    program = folder / name
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{name}.{os.getpid()}"
        ran = done([command[0], *FLAGS, *map(str, sources), "-o", str(made), *command[1:]])
        if ran.returncode != 0:
            first = next((line for line in ran.stderr.splitlines() if "error" in line), ran.stderr[:200])
            raise SkippedError(f"not built, {why}: {first}")
        made.replace(program)  # at once: two runs may build the same
    return program


def with_libraries(name: str, libraries: Sequence[str], install: str) -> Path:
    """Return the program of a C source of that name and of libraries that pkg-config knows."""
    gcc, package = compiler("gcc", install), compiler("pkg-config", install)
    flags = done([package, "--cflags", "--libs", *libraries])
    if flags.returncode != 0:
        raise SkippedError(f"not installed: {install}")
    return build(name, [gcc, *flags.stdout.split()], [SOURCES / f"{name}.c"], install)


def mempool() -> Path:
    """Return the program around DPDK's rte_mempool."""
    return with_libraries("mempool", ["libdpdk"], "apt install gcc pkg-config libdpdk-dev")


def pmemobj() -> Path:
    """Return the program around PMDK's libpmemobj."""
    return with_libraries("pmemobj", ["libpmemobj", "libpmem"], "apt install gcc pkg-config libpmemobj-dev")


def plf(container: str) -> Path:
    """Return the program around `plf::hive` or `plf::colony`."""
    header = f"plf_{container}.h"
    colony, hive = "apt install g++ libplf-colony-dev", f"set PLF_HIVE to the folder that has {header}"
    install = colony if container == "colony" else hive
    gxx, extra = compiler("g++", "apt install g++"), os.environ.get("PLF_HIVE", "")
    folders = [Path(extra)] if extra else []
    headers = [folder / header for folder in (*folders, Path("/usr/include"), Path("/usr/local/include"))]
    there = [path for path in headers if path.exists()][:1]
    if not there:
        raise SkippedError(f"not installed: {install}")
    command = [gxx, "-std=c++20", *(f"-I{folder}" for folder in folders), *(["-DCOLONY"] if container == "colony" else [])]
    return build(container, command, [SOURCES / "containers.cpp"], install, there)


def crates() -> Path:
    """Return the program around Rust's slab and slotmap: of crates.io, else of Debian's packages."""
    cargo = compiler("cargo", "apt install cargo, or https://rustup.rs")
    sources = [SOURCES / "containers" / "Cargo.toml", SOURCES / "containers" / "src" / "main.rs"]
    folder = folder_of([cargo, "target-cpu=native"], sources)
    program = folder / "release" / "containers"
    if program.exists():
        return program
    work = folder / "package"
    shutil.copytree(SOURCES / "containers", work, dirs_exist_ok=True)
    environment = os.environ | {"RUSTFLAGS": "-C target-cpu=native", "CARGO_NET_RETRY": "0", "CARGO_TARGET_DIR": str(folder)}
    command = [cargo, "build", "--release", "--quiet"]
    ran = done(command, cwd=work, env=environment)
    if ran.returncode != 0 and CRATES.is_dir():
        (work / "Cargo.lock").unlink(missing_ok=True)  # it may name versions of crates.io
        local = ("source.crates-io.replace-with='debian'", f"source.debian.directory='{CRATES}'")
        ran = done([*command, *(word for setting in local for word in ("--config", setting))], cwd=work, env=environment)
    if ran.returncode != 0 or not program.exists():
        lines = ran.stderr.strip().splitlines()
        raise SkippedError(
            f"crates not to be had: apt install librust-slab-dev librust-slotmap-dev ({lines[-1] if lines else ''})"
        )
    return program

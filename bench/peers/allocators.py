"""
The C allocators: where each is found, how a process has it for its `malloc`, and whose `malloc` a process really has.

Below `process`.  LD_PRELOAD puts a library before the C library; one that cannot be loaded is only warned of, so every process
that measures says which file its `malloc` is of.  As a script: this process's, and its version, as JSON.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from measure import SkippedError, WrongAnswerError, python_path

SYSTEM = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "")
MIMALLOC_3 = "cmeel-mimalloc"  # the distribution on PyPI: a wheel with the library
SNMALLOC = "SNMALLOC"  # the variable that names its library


@dataclass(frozen=True)
class Allocator:
    """A C allocator: what the name of its file begins with, where the file is, and what to do where it is not."""

    file: str
    find: Callable[[Allocator], str | None]
    install: str
    version: str = ""  # what its version begins with

    def library(self) -> str:
        """Return what LD_PRELOAD takes; raises `SkippedError` if it is not installed."""
        found = self.find(self)
        if found is None:
            raise SkippedError(f"not installed: {self.install}")
        return found


# --- Where it is ---


def of_system(allocator: Allocator) -> str | None:
    """Return the file in the system's folder, or the name that the loader knows it by."""
    found = sorted(SYSTEM.glob(f"{allocator.file}*"), key=lambda path: len(path.name))
    if found:
        return str(found[0])
    name = ctypes.util.find_library(allocator.file.removeprefix("lib").partition(".so")[0])
    return name if name is not None and name.startswith(allocator.file) else None


def of_wheel(allocator: Allocator) -> str | None:
    """Return the file of the wheel in this environment, else of the system."""
    try:
        files = importlib.metadata.files(MIMALLOC_3) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = sorted(str(file.locate()) for file in files if file.name.startswith(allocator.file))
    return found[0] if found else of_system(allocator)


def of_variable(allocator: Allocator) -> str | None:
    """Return the file that the variable names, else that of the system."""
    named = os.environ.get(SNMALLOC, "")
    if named and not Path(named).is_file():
        raise SkippedError(f"{SNMALLOC} names {named}, which is no file")
    return named or of_system(allocator)


def in_place(_: Allocator) -> str:
    """Return nothing to preload: it is there."""
    return ""


ALLOCATORS = {
    "mimalloc 2": Allocator("libmimalloc.so.2", of_system, "apt install libmimalloc2.0", "2."),
    "mimalloc 3": Allocator("libmimalloc.so.3", of_wheel, f"pip install {MIMALLOC_3}", "3."),
    "jemalloc": Allocator("libjemalloc.so", of_system, "apt install libjemalloc2"),
    "tcmalloc": Allocator("libtcmalloc_minimal.so", of_system, "apt install libtcmalloc-minimal4"),
    "snmalloc": Allocator("libsnmallocshim.so", of_variable, f"no package has it: set {SNMALLOC} to its libsnmallocshim.so"),
    "glibc": Allocator("libc.so", in_place, "the C library"),
}  # by the name that tables and charts have; glibc, which needs nothing, is last


def environment(name: str) -> dict[str, str]:
    """Return the environment of a process that has an allocator for its `malloc`; raises `SkippedError`."""
    around = {**os.environ, "PYTHONPATH": python_path()}
    library = ALLOCATORS[name].library()
    return around | {"LD_PRELOAD": library} if library else around


# --- Whose malloc a process has ---


class _Where(ctypes.Structure):
    """What dladdr says of an address."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p))


def serving() -> dict[str, str]:
    """Return the name of the file that this process's `malloc` is of, and the version that it says it has; snmalloc says none."""
    process, where = ctypes.CDLL(None), _Where()
    if process.dladdr(ctypes.cast(process.malloc, ctypes.c_void_p), ctypes.byref(where)) == 0:
        return {"file": "", "version": ""}
    file = Path(where.file.decode()).name
    ask = next((ask for stem, ask in VERSIONS.items() if file.startswith(stem)), None)
    return {"file": file, "version": ask(process) if ask else ""}


def of_mimalloc(process: Any) -> str:
    """Return a version: 209 is 2.0.9, 30403 is 3.4.3."""
    number = int(process.mi_version())
    parts = divmod(number // 100, 100) if number >= 10_000 else divmod(number // 10, 10)
    return ".".join(map(str, (*parts, number % (100 if number >= 10_000 else 10))))


def of_jemalloc(process: Any) -> str:
    """Return a version without the commit that stands behind it."""
    text, size = ctypes.c_char_p(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_char_p))
    process.mallctl(b"version", ctypes.byref(text), ctypes.byref(size), None, ctypes.c_size_t(0))
    return (text.value or b"").decode().partition("-")[0]


def of_tcmalloc(process: Any) -> str:
    """Return the name and the version of the tools that it is part of."""
    process.tc_version.restype = ctypes.c_char_p
    return str(process.tc_version(None, None, None).decode())


def of_glibc(process: Any) -> str:
    """Return a version."""
    process.gnu_get_libc_version.restype = ctypes.c_char_p
    return str(process.gnu_get_libc_version().decode())


class _Batch(ctypes.Structure):
    """What jemalloc is told of a batch."""

    _fields_ = (("to", ctypes.c_void_p), ("n", ctypes.c_size_t), ("size", ctypes.c_size_t), ("flags", ctypes.c_int))


def batch_alloc() -> Callable[[Any, int], None] | None:
    """Return what fills an int64 array with addresses by one call of this process's allocator, of which only jemalloc has one."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "mallctl"):
        return None

    def fill(held: Any, size: int) -> None:
        batch, filled = _Batch(held.ctypes.data, held.size, size, 0), ctypes.c_size_t()
        length, of_batch = ctypes.c_size_t(ctypes.sizeof(filled)), ctypes.c_size_t(ctypes.sizeof(batch))
        to = ctypes.byref(filled), ctypes.byref(length)
        failed = process.mallctl(b"experimental.batch_alloc", *to, ctypes.byref(batch), of_batch)
        if failed or filled.value != held.size:
            raise WrongAnswerError(f"a batch of {held.size} had {filled.value} ({os.strerror(failed)})")

    return fill


VERSIONS = {"libmimalloc": of_mimalloc, "libjemalloc": of_jemalloc, "libtcmalloc": of_tcmalloc, "libc.so": of_glibc}


def check(name: str, found: dict[str, str]) -> None:
    """Raise `WrongAnswerError` unless a process that answered `serving()` had the allocator of that name."""
    wanted = ALLOCATORS[name]
    if not found["file"].startswith(wanted.file) or not found["version"].startswith(wanted.version):
        raise WrongAnswerError(f"{name} was to be measured, and malloc was of {found['file']}, version {found['version']!r}")


@cache
def versions() -> dict[str, str]:
    """Return the version of every allocator that is installed, asked of a process that has it; "" if it says none."""
    found = {}
    for name in ALLOCATORS:
        try:
            around = environment(name)
        except SkippedError:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "peers.allocators"], env=around, stdout=subprocess.PIPE, text=True, check=True
        )
        answer = json.loads(done.stdout)
        check(name, answer)
        found[name] = answer["version"]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(serving()))

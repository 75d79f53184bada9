"""What may stand where: addresses, system calls, prints; and every public name has its example."""

import inspect
import re
import types
import typing
from pathlib import Path

import pytest

import jitslab

PACKAGE = Path(jitslab.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    r"\bimport ctypes|ctypes\.[a-zA-Z]": {
        "machine/addresses.py": "system calls",
        "machine/cpython.py": "CPython's descriptions of types, methods and attributes",
        "core/guard_calls.py": "calls without giving the GIL up; addresses of its own arrays",
        "owning.py": "the address of its own array",
        "machine/owner.py": "the address of its own row",
        "machine/compile.py": "an Entry is called by Numba's own ctypes function",
        "core/memory.py": "the address of the region it lays out",
        "core/faults.py": "the address of its own words",
        "core/region.py": "the address of the RANGE row",
        "sizes/kernels.py": "the address of the table of entry points",
        "cache.py": "addresses of a caller's arrays",
        "reach.py": "addresses of its own arrays",
        "replay/peak.py": "malloc_trim of the C library, measured beside",
        "core/process.py": "the address of the process's own memory",
        "njit/cache.py": "addresses of arrays that compiled code passes",
        "sizes/classes.py": "the address of the PINNED row",
        "pool/heads.py": "the address of its own row",
        "pool/journal.py": "addresses of its own arrays, and of a caller's",
        "pool/pool.py": "addresses of its own arrays",
        "pool/restore.py": "addresses of its own arrays",
        "pool/memory.py": "addresses of its own arrays",
        "pool/dirty.py": "addresses of its own arrays",
        "replay/replay.py": "malloc and free of the C library, measured beside; addresses of its own arrays",
    },
    r"\bllvmlite\b|\bir\.[A-Z]": {
        "machine/compile.py": "functions of C",
        "machine/front.py": "what kernels do",
        "machine/library.py": "modules",
        "machine/memory.py": "intrinsics",
        "machine/flush.py": "intrinsics",
        "machine/pointers.py": "fields and items",
        "core/vectors.py": "intrinsics",
        "core/calls.py": "calls through the table",
        "machine/cpython.py": "calls of CPython",
        "core/guard_calls.py": "fields",
        "machine/disk.py": "its version",
        "machine/holder.py": "a call of CPython",
    },
    r"^@(literal_)?intrinsic": {
        "machine/compile.py": "addresses of objects and functions",
        "machine/memory.py": "loads, stores, copies",
        "machine/flush.py": "instructions for persistent memory",
        "machine/pointers.py": "addresses, atomics",
        "core/vectors.py": "loads and stores of slots in a row",
        "core/calls.py": "calls through the table",
        "machine/cpython.py": "calls of CPython",
        "core/guard_calls.py": "loads and stores of fields, aligned or not",
        "njit/cache.py": "what the Numba type of a cache knows",
        "sizes/njit.py": "an array of raw memory",
    },
    r"\bcarray\b|\bfarray\b|address_as_void_pointer": {},
    r"\bmmap\b(?!\.)|\bmmap\.mmap|mprotect|madvise": {
        "machine/addresses.py": "system calls",
        "machine/system.py": "system calls",
        "pool/pmem.py": "pages of a mapping that are wanted at once",
    },
    r"\bpickle\b\.|\bmarshal\b": {
        "machine/disk.py": "machine code as Numba pickles it",
        "machine/build.py": "machine code, with the names of what is in it",
    },
    r"^\s*print\(": {"examples/workers.py": "its output"},
}


def code_of(path):
    """Return a file's lines without comments and docstrings."""
    source = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
    return [line.split("  #")[0] for line in source.splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_what_is_fenced_stands_in_its_files_only(pattern):
    """Addresses, system calls and prints are where the design says, and nowhere else."""
    found = {path.relative_to(PACKAGE).as_posix() for path in FILES if any(re.search(pattern, line) for line in code_of(path))}
    extra = found - set(ALLOWED[pattern])

    assert set() == extra


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_says_its_job(path):
    """Every file begins with what it is for."""
    assert path.read_text().startswith(('"""', "#!"))


BASES = {"SlabError", "FieldError", "ImageError"}  # of errors of several kinds
ALIASES = {name for name in jitslab.__all__ if typing.get_origin(getattr(jitslab, name)) is typing.Annotated}  # jitslab.f8


@pytest.mark.parametrize("name", [name for name in jitslab.__all__ if callable(getattr(jitslab, name)) and name not in ALIASES])
def test_public_name_has_an_example(name):
    """Every public class and function has an Examples section; exceptions and the states explain themselves in a line."""
    it = getattr(jitslab, name)
    plain = inspect.isclass(it) and (issubclass(it, BaseException) or name == "SlabState")

    assert inspect.getdoc(it)
    assert plain or "Examples\n--------\n>>> " in inspect.getdoc(it)


@pytest.mark.parametrize("name", [name for name in jitslab.__all__ if name.endswith("Error") and name not in BASES])
def test_exception_is_also_the_builtin_that_is_expected(name):
    """Who knows only Python's exceptions catches ours, too."""
    it = getattr(jitslab, name)
    builtins = [base for base in it.__mro__ if base.__module__ == "builtins" and base not in (Exception, BaseException, object)]

    assert issubclass(it, jitslab.SlabError)
    assert builtins


def test_every_public_name_exists():
    """`__all__` names what there is."""
    assert sorted(jitslab.__all__, key=str.lower) == sorted(set(jitslab.__all__), key=str.lower)
    assert all(hasattr(jitslab, name) for name in jitslab.__all__)


def test_names_after_the_dot_are_the_public_ones():
    """Completion proposes what `__all__` names and the version, and no module of the package."""
    exported = re.findall(r"\b(\w+) as \1\b", Path(jitslab.__file__).read_text())

    assert sorted(exported) == jitslab.__all__
    assert sorted([*exported, "__version__"]) == dir(jitslab)
    assert not any(isinstance(getattr(jitslab, name), types.ModuleType) for name in dir(jitslab))

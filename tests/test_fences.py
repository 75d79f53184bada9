"""What may stand where: addresses, system calls, prints; and every public name has its example."""

import inspect
import re
import typing
from pathlib import Path

import pytest

import jitslab

PACKAGE = Path(jitslab.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
ALLOWED = {
    r"\bimport ctypes|ctypes\.[a-zA-Z]": {
        "_os.py": "system calls",
        "_cpython.py": "CPython's descriptions of types, methods and attributes",
        "guard_calls.py": "calls without giving the GIL up; addresses of its own arrays",
        "guard_many.py": "the address of its own array",
        "_native.py": "an Entry is called by Numba's own ctypes function",
        "block.py": "the address of the reservation it lays out",
        "cache.py": "addresses of a caller's arrays",
        "peak.py": "malloc_trim of the C library, measured beside",
        "process.py": "the address of the process's own block",
        "compiled.py": "addresses of arrays that compiled code passes",
        "sizes.py": "the address of the words that the end of an array needs",
        "replay.py": "malloc and free of the C library, measured beside; addresses of its own arrays",
    },
    r"\bllvmlite\b|\bir\.[A-Z]": {
        "_native.py": "intrinsics",
        "_cpython.py": "calls of CPython",
        "guard_calls.py": "fields",
        "_disk.py": "its version",
        "blocktype.py": "a call of CPython",
    },
    r"^@(literal_)?intrinsic": {
        "_native.py": "loads, stores, atomics",
        "_cpython.py": "calls of CPython",
        "guard_calls.py": "loads and stores of fields, aligned or not",
        "compiled.py": "what the Numba type of a cache knows",
        "sizetype.py": "an array of raw memory",
    },
    r"\bcarray\b|\bfarray\b|address_as_void_pointer": {},
    r"\bmmap\b(?!\.)|\bmmap\.mmap|mprotect|madvise": {"_os.py": "system calls", "_pages.py": "pages of large memory"},
    r"\bpickle\b\.|\bmarshal\b": {"_disk.py": "machine code as Numba pickles it"},
    r"^\s*print\(": {},
}


def code_of(path):
    """Return a file's lines without comments and docstrings."""
    source = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
    return [line.split("  #")[0] for line in source.splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_what_is_fenced_stands_in_its_files_only(pattern):
    """Addresses, system calls and prints are where the design says, and nowhere else."""
    found = {path.name for path in FILES if any(re.search(pattern, line) for line in code_of(path))}
    extra = found - set(ALLOWED[pattern])

    assert set() == extra


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_module_says_its_job(path):
    """Every file begins with what it is for."""
    assert path.read_text().startswith(('"""', "#!"))


BASES = {"SlabError", "FieldError"}  # of errors of several kinds
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

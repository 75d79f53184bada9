"""The kernels' code on disk: names that tell functions apart in every process, and files that may be in any state."""

import compileall
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
import pytest
from numba.core.ccallback import CFunc
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from program import run_python

import jitslab
from jitslab import KernelCacheWarning
from jitslab.core import batch
from jitslab.machine import disk as _disk
from jitslab.machine.compile import Entry, kernel, lean
from jitslab.machine.library import EntryLibrary

# --- Names ---

# BEFORE functions of the user's, then the kernels of NAMES: their symbols.
SYMBOLS = """
from numba import njit, types
from jitslab.core import batch
from jitslab.core.layout import HeapPointer

def make(i):
    @njit
    def f(x):
        return x + i
    return f

for i in range(BEFORE):
    make(i)(1)
for name in NAMES:
    rows = getattr(batch, name)
    rows.compile((HeapPointer, types.int64, types.int64))
    (compiled,) = rows.overloads.values()
    print(name, compiled.fndesc.mangled_name)
"""

# Batches of all widths, through whatever is on disk.
BATCHES = """
import numpy as np, jitslab
from numba import njit

cache = jitslab.SlabCache("rows", np.dtype([("a", "i8")]), capacity=100_000)

@njit
def take(cache, out):
    return cache.alloc_many(out)

@njit
def give(cache, handles):
    return cache.free_many(handles)

for n in (4, 8, 12, 16, 24, 60):
    buffer = np.full(200, -7)
    assert take(cache, buffer[:n]) == n
    assert (buffer[n:] == -7).all()
    assert all(handle in cache for handle in buffer[:n]) and len(cache) == n
    assert give(cache, buffer[:n]) == n
    assert len(cache) == 0
    cache.check()
"""


FROM_HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def warm_copy(tmp_path):
    """Return a folder for NUMBA_CACHE_DIR with what this process can read, and where in it the kernels are."""
    jitslab.warmup()
    name = "jitslab_" + _disk.hashlib.sha1(os.fsencode(Path(_disk.__file__).parents[1])).hexdigest()
    for folder in reversed(_disk.folders()):
        if os.path.isdir(folder):
            ours = shutil.ignore_patterns("*.pyc", "*.tmp")
            shutil.copytree(folder, tmp_path / "cache" / name, ignore=ours, dirs_exist_ok=True)
    return tmp_path / "cache", tmp_path / "cache" / name


@pytest.mark.parametrize("before", [(0, 0, 0), (0, 3, 1)], ids=str)
def test_kernels_of_processes_that_count_alike_are_not_confused(warm_copy, before):
    """Each width of a row comes from another process, whose first kernel it is; together they take what they should."""
    folder, kernels = warm_copy
    for path in kernels.glob("batch._make_rows*"):
        path.unlink()
    for n, names in zip(before, (["pop_row", "push_row"], ["pop_half", "push_half"], ["pop_few", "push_few"]), strict=True):
        run_python(f"BEFORE, NAMES = {n}, {names}\n{SYMBOLS}", NUMBA_CACHE_DIR=str(folder))
    assert len(list(kernels.glob("batch._make_rows*"))) == 6

    run_python(BATCHES, NUMBA_CACHE_DIR=str(folder))


def test_symbols_do_not_depend_on_what_was_compiled_before(tmp_path):
    """Two processes, each with an empty folder, give a kernel one name, and two kernels two."""
    names = ["pop_row", "push_row", "pop_half", "push_half", "pop_few", "push_few"]
    first, second = (
        run_python(f"BEFORE, NAMES = {n}, {each}\n{SYMBOLS}", NUMBA_CACHE_DIR=str(tmp_path / str(n)), PYTHONHASHSEED=str(n))
        for n, each in ((0, names), (5, names[::-1]))
    )

    assert sorted(first.splitlines()) == sorted(second.splitlines())
    assert len({line.split()[1] for line in first.splitlines()}) == len(names)


def of_type(wanted):
    """Return all objects of a class; by their types, since some are proxies of what is gone."""
    return [each for each in gc.get_objects() if issubclass(type(each), wanted)]


# The hash of each kernel of the library, after BEFORE functions of the user's.
IDENTITIES = """
import numba
for i in range(BEFORE):
    numba.njit(lambda x: x + 1)(1)
import jitslab.replay
import test_disk
from jitslab.machine import disk as _disk

functions = {each.py_func for each in test_disk.of_type(test_disk.Dispatcher)}
functions |= {each.function for each in test_disk.of_type(test_disk.Entry)}
for f in functions:
    if f.__module__.startswith("jitslab."):
        print(f.__module__, f.__qualname__, [each.cell_contents for each in f.__closure__ or ()], _disk.identity(f))
"""


def compiled_kernels():
    """Return (function, argument types, symbol, library) of what this process has compiled, or read."""
    found = [(each._pyfunc, each._sig.args, each._wrapper_name, each._library) for each in of_type(CFunc)]
    for each in of_type(Dispatcher):
        results = each.overloads.items()
        found += [(each.py_func, args, result.fndesc.mangled_name, result.library) for args, result in results]
    return [each for each in found if (each[0].__module__ or "").startswith("jitslab.")]


def test_kernels_are_told_apart_alike_in_every_process():
    """No two kernels of the library have one hash, and processes that began otherwise compute the same hashes."""
    one, other = (
        sorted(run_python(f"BEFORE = {n}\n{IDENTITIES}", PYTHONHASHSEED=str(n), **FROM_HERE).splitlines()) for n in (0, 3)
    )

    assert one == other
    assert len(one) == len({line.split()[-1] for line in one}) > 200


def test_each_symbol_has_the_hash_of_its_kernel():
    """And of its arguments; so no two have one symbol."""
    jitslab.warmup()
    found = compiled_kernels()

    assert [] == [symbol for function, args, symbol, _ in found if _disk.symbol_id(function, args) not in symbol]
    assert len({(_disk.identity(function), args) for function, args, *_ in found}) == len({symbol for *_, symbol, _ in found})


def test_code_on_disk_has_no_function_with_a_number_of_its_process():
    """What is linked with a kernel has a name that follows from its content; functions of Numba's own would not."""
    jitslab.warmup()
    content = re.compile(rf"_ZN7jitslab\d+[a-z_0-9]+?\d+_?[0-9a-f]{{16}}\d+.*B2v0|^jitslab\.[a-z_0-9.]+\.{_disk.SOURCE_HASH}$")
    names = {each.name for *_, library in compiled_kernels() for each in defined_in(library)}

    assert [] == [name for name in names if not content.search(name)]
    assert len(names) > 10  # of what is linked into user code: what entry points call has no names


def defined_in(library):
    """Return the functions that code which is linked with a library's gets from it."""
    return [each for each in library._get_module_for_linking().functions if not each.is_declaration]


def with_globals(function, **changed):
    """Return a copy of a function that finds other values by some names."""
    return FunctionType(function.__code__, {**function.__globals__, **changed}, None, None, function.__closure__)


@pytest.mark.parametrize("make", [kernel, lean], ids=["kernel", "lean"])
def test_identity_follows_what_a_kernel_finds_by_name(make):
    """A constant, which may be the machine's, and what is called, by way of an intrinsic too, are part of what a kernel is."""
    called, caller = batch.free_rows.py_func, batch.free_in_node.py_func
    changed = with_globals(called, LINE_SLOTS=8)
    same, other = (with_globals(caller, free_rows=make(each)) for each in (with_globals(called), changed))

    assert _disk.identity(called) == _disk.identity(with_globals(called)) != _disk.identity(changed)
    assert _disk.identity(caller) == _disk.identity(with_globals(caller))
    assert _disk.identity(same) != _disk.identity(other)


def test_every_module_of_a_kernel_is_in_the_hash_of_the_sources():
    """User code that is on disk must not meet other kernels, or other lowerings of its calls: its key has the hash."""
    made = [each.py_func for each in of_type(Dispatcher)] + [each.function for each in of_type(Entry)]
    made += [each._defn for each in of_type(_Intrinsic)]
    modules = {each.__module__ for each in made if (each.__module__ or "").startswith("jitslab.")}
    modules -= {name for name in modules if name.startswith("jitslab.examples.")}  # a user's programs

    assert set() == modules - {f"jitslab.{name}" for name in _disk.SOURCES}
    assert len(modules) > 10


# --- Files ---


def scaled(x: int, y: int) -> int:
    """Be small, and quick to compile."""
    return x * 7 + y


def answer_of(function=scaled):
    """Return whether a kernel was read from disk; what it answers is right in any case."""
    entry = Entry(function)
    assert entry(5, 7) == 42
    made = entry.compile()[2]
    return made.is_from_disk if isinstance(made, EntryLibrary) else made.cache_hits == 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder that kernels are kept in, as if nothing had been said yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_disk.KeptCode, "is_told", False)
    (only,) = _disk.folders()
    return Path(only)


def test_a_kernel_is_kept_in_one_file(folder):
    """The second time it is read, and no part of a file is left over."""
    assert [answer_of(), answer_of()] == [False, True]
    (path,) = folder.iterdir()
    assert path.name.startswith("test_disk.scaled-")


def flipped(data):
    """One bit in the middle is wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "digest only": lambda data: data[:32],
    "cut": lambda data: data[: len(data) // 3],
    "last byte missing": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: b"garbage" * 100,
    "one bit": flipped,
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_compiled_anew_and_replaced(folder, damage):
    """Without a word: the next process finds it whole."""
    answer_of()
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))

    assert [answer_of(), answer_of()] == [False, True]
    assert [path] == list(folder.iterdir())


def test_file_of_another_kernel_is_not_used(folder):
    """Whatever the name says: the digest is of this kernel's key, too."""

    def other(x: int, y: int) -> int:
        return x * 1000 + y

    Entry(other).compile()
    (wrong,) = folder.iterdir()
    answer_of()
    (path,) = set(folder.iterdir()) - {wrong}
    shutil.copy(wrong, path)

    assert [answer_of(), answer_of()] == [False, True]


def test_file_of_another_version_is_replaced(folder, monkeypatch):
    """A new version of the package leaves no files of the old one behind."""
    identity = _disk.identity
    answer_of()
    monkeypatch.setattr(_disk, "identity", lambda function: "newer" + identity(function))

    assert [answer_of(), answer_of()] == [False, True]
    assert len(list(folder.iterdir())) == 1


def test_folder_that_is_deleted_meanwhile_is_made_anew(folder):
    """As the cleaning of a temporary folder does."""
    answer_of()
    shutil.rmtree(folder.parent)

    assert [answer_of(), answer_of()] == [False, True]


def in_place_of_folder(folder):
    """Have a file stand where the folder should."""
    folder.parent.mkdir(exist_ok=True)
    folder.write_bytes(b"")


def in_place_of_file(folder):
    """Have a folder stand where the file should."""
    answer_of()
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [in_place_of_folder, in_place_of_file])
def test_code_that_cannot_be_kept_is_used_from_memory(folder, spoil):
    """One warning for the process names the place, the reason and the remedy."""
    spoil(folder)
    before = set(folder.parent.rglob("*"))
    words = rf"{folder}.* cannot be written: (File exists|Is a directory); .* NUMBA_CACHE_DIR"
    with pytest.warns(KernelCacheWarning, match=words) as told:
        assert not answer_of()
    assert len(told) == 1
    assert not answer_of()
    assert before == set(folder.parent.rglob("*"))


def test_no_folder_at_all_is_told(folder, monkeypatch):
    """Imported from where nothing can be kept, by a user without a home."""
    monkeypatch.setattr(_disk, "folders", list)
    with pytest.warns(KernelCacheWarning, match="later processes compile it again: there is no folder for it"):
        assert not answer_of()


def test_next_folder_serves_if_one_cannot_be_written(folder, monkeypatch):
    """An installation that is read only: what is there is read, the rest goes to the user's own folder."""
    in_place_of_folder(folder)
    monkeypatch.setattr(_disk, "folders", lambda: [str(folder), str(folder) + "-2"])

    assert [answer_of(), answer_of()] == [False, True]


def test_folders_are_those_of_numba(monkeypatch):
    """The one that the environment names; else beside the package, then the user's; a home that is not known is none."""
    beside = str(Path(_disk.__file__).parents[1] / "__pycache__")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/named")
    assert [os.path.dirname(each) for each in _disk.folders()] == ["/named"]

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/x/.cache")
    assert [beside, "/home/x/.cache/numba"] == [_disk.folders()[0], os.path.dirname(_disk.folders()[1])]

    monkeypatch.setenv("XDG_CACHE_HOME", "~unknown/.cache")
    assert [beside] == _disk.folders()

    monkeypatch.setattr(sys, "frozen", True, raising=False)  # its folder may be a temporary one
    assert [] == _disk.folders()


def test_disk_that_is_full_leaves_no_part_of_a_file(tmp_path):
    """A limit in the middle of a file, as of a full disk or a quota: later ones of less are kept, and one warning is given."""
    program = """
import resource, warnings
warnings.simplefilter("always")
from jitslab.machine.compile import Entry
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
def f(x):
    return x + 1
def g(x):
    return x + 2
with warnings.catch_warnings(record=True) as told:
    assert (Entry(f)(1), Entry(g)(1)) == (2, 3)
(only,) = told
print(only.category.__name__, only.message)
"""
    text = run_python(program, NUMBA_CACHE_DIR=str(tmp_path))

    assert text.startswith("KernelCacheWarning ")
    assert "cannot be written: File too large" in text
    assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]


def test_symbol_that_numba_does_not_take_over_is_not_kept(folder, monkeypatch):
    """If a later Numba makes names in another way, no code is kept that another process could take for another's."""
    monkeypatch.setattr(_disk.NamingCompiler, "define_pipelines", _disk.Compiler.define_pipelines)

    def checked(x: int, y: int) -> int:
        if y < 0:
            raise ValueError  # what raises is compiled by Numba's own passes
        return x * 7 + y

    with pytest.warns(KernelCacheWarning, match="this version of Numba does not give functions the names that tell them apart"):
        assert not answer_of(checked)
    assert not folder.exists()


ADDRESS = np.zeros(1 << 18)  # too large for Numba to copy it: code that uses it has its address


def test_code_with_an_address_is_not_kept(folder):
    """In another process there would be something else."""

    def reads(x: int, y: int) -> int:
        return x * 7 + y + int(ADDRESS[0])

    with pytest.warns(KernelCacheWarning, match="reads has an address of this process in it"):
        assert not answer_of(reads)
    assert not folder.exists()


# --- Packages without files ---

USE = """
import jitslab
from jitslab.core import batch
from jitslab.core.layout import HeapPointer
from jitslab.machine.compile import kernel
from numba import types

hits = []
for _ in range(2):
    rows = kernel(batch.pop_few.py_func)
    rows.compile((HeapPointer, types.int64, types.int64))
    hits.append(sum(rows.stats.cache_hits.values()))
print(hits, jitslab.core.batch.__spec__.origin)
"""
FROZEN = """
import importlib.abc, importlib.util, marshal, pathlib, sys

class Frozen(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    codes = marshal.loads(pathlib.Path(CODES).read_bytes())

    def find_spec(self, name, path=None, target=None):
        if name in self.codes:
            return importlib.util.spec_from_loader(name, self, origin="frozen", is_package=self.has_modules(name))

    def has_modules(self, name):
        return any(each.startswith(name + ".") for each in self.codes)

    def get_code(self, name):
        return self.codes[name]

    def get_source(self, name):
        return None

sys.frozen = True
sys.meta_path.insert(0, Frozen())
"""


def zipped(tree, folder):
    """Import from an archive."""
    return "", shutil.make_archive(str(folder / "app"), "zip", tree)


def bare_zipped(tree, folder):
    """Import from an archive that is not named as one and has no sources."""
    _, path = compiled_only(tree, folder)
    return "", shutil.move(shutil.make_archive(str(folder / "app"), "zip", path), folder / "app.pyz")


def compiled_only(tree, folder):
    """Import what `compileall -b` makes, without the sources."""
    compileall.compile_dir(tree, quiet=1, legacy=True)
    for path in tree.rglob("*.py"):
        path.unlink()
    return "", str(tree)


def frozen(tree, folder):
    """Import modules that are code and nothing else, as those of a frozen application."""
    import marshal

    codes = {}
    for path in (tree / "jitslab").rglob("*.py"):
        name = ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
        codes[name] = compile(path.read_text(), f"/nowhere/{path.name}", "exec")
    (folder / "codes").write_bytes(marshal.dumps(codes))
    return f"CODES = {str(folder / 'codes')!r}\n{FROZEN}", str(folder)


@pytest.mark.parametrize("pack", [zipped, bare_zipped, compiled_only, frozen])
def test_package_without_source_files_keeps_its_kernels(tmp_path, pack):
    """It imports, compiles, and reads what it compiled, as an installed one does."""
    tree = tmp_path / "tree"
    shutil.copytree(Path(jitslab.__file__).parent, tree / "jitslab", ignore=shutil.ignore_patterns("__pycache__", "data"))
    (tmp_path / "pack").mkdir()
    before, path = pack(tree, tmp_path / "pack")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", before + USE],
        env={**os.environ, "PYTHONPATH": str(path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        cwd=tmp_path / "pack",
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[0, 1] ")
    assert (str(tmp_path) in done.stdout) == (pack is not frozen)


def test_packaged_trace_is_read_from_an_archive(tmp_path):
    """It is a file while the process runs."""
    path = shutil.make_archive(str(tmp_path / "app"), "zip", Path(jitslab.__file__).parent.parent, "jitslab")
    program = f"import sys; sys.path.insert(0, {path!r})\nfrom jitslab.replay import trace\n"
    program += "print(len(trace.load(trace.packaged()).events), trace.packaged())"
    events, unpacked = run_python(program).split()

    assert int(events) == 200_000
    assert not os.path.exists(unpacked)


def test_code_without_a_file_is_told_apart():
    """The hash of a module that has no file follows its code, and does not follow the order of a set."""
    source = "def f(x):\n    return x in {'a', 'b', 'c'}\n"
    program = f"from jitslab.machine import disk as _disk; print(_disk._plain(compile({source!r}, '<1>', 'exec')))"

    assert len({run_python(program, PYTHONHASHSEED=str(n)) for n in range(4)}) == 1
    assert _disk._plain(compile(source, "<1>", "exec")) != _disk._plain(compile(source.replace("'c'", "'d'"), "<1>", "exec"))

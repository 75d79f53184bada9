"""
The kernels' machine code on disk, and the names of its functions for the linker.

Two things differ from Numba's own cache:

- Numba tells functions of one name apart by a number: how many the process has compiled before.  Two processes can give one
  number to two functions; when their code is read from disk and linked, the linker keeps one of the two for both.  Here the
  name carries a hash of everything that the function is made of.
- Numba keeps an index and several bodies for each function, and checks neither: a torn file ends every later start, and if two
  processes write at once, one may find the other's body under its key.  Here a file is one body and its digest; a torn file, or
  one of another version, is not used and is written anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core.caching import NullCache
from numba.core.compiler import Compiler, CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from ..errors import KernelCacheWarning

# Its hash stands in the name of the cache's Numba type: so user code that was compiled against other sources is not used.
SOURCES = tuple(
    f"{folder}.{name}"
    for folder, names in {
        "machine": "addresses disk front library build compile memory pointers flush system owner cpython holder",
        "core": "layout vectors calls slab grow faults heap_table claim heap batch scan rebuild check process dispatch"
        " cache_calls guard_calls reach reader",
        "njit": "lowering birth cache",
        "sizes": "layout large opening kernels njit",
        "pool": "frames hashes memory pagemap pmem restore",
        "replay": "loops",
    }.items()
    for name in names.split()
)
PACKAGE = __name__.partition(".")[0]
DIGEST = 32  # bytes at the start of a file: the digest of its key and of the rest


# --- What a kernel is made of ---


def _bytes_of(module: str) -> bytes:
    """Return the file of a module, from wherever it is imported; if it has none (frozen), its code as text."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
    assert spec is not None
    loader: Any = spec.loader
    if spec.origin is not None and hasattr(loader, "get_data"):
        try:
            return bytes(loader.get_data(spec.origin))
        except OSError:  # a loader that has data files, but no modules
            pass
    return repr(_plain(loader.get_code(spec.name))).encode()


def _plain(code: CodeType) -> tuple[Any, ...]:
    """Return code as a value that is equal in every process; `marshal` writes other bytes in each."""
    constants = [
        _plain(each) if isinstance(each, CodeType) else sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each)
        for each in code.co_consts
    ]
    return code.co_name, code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


SOURCE_HASH = hashlib.sha256(b"".join(map(_bytes_of, SOURCES))).hexdigest()[:8]


@cache
def identity(function: FunctionType) -> str:
    """Hash everything that the compiled code of a function depends on: the sources, its own code, and the values of its names."""
    globals_, code = function.__globals__, function.__code__
    spaces = [globals_, *(vars(value) for name in code.co_names if isinstance(value := globals_.get(name), ModuleType))]
    found = [(name, _content(space[name])) for space in spaces for name in code.co_names if name in space]
    cells = [_content(cell.cell_contents) for cell in function.__closure__ or ()]
    whole = SOURCE_HASH, function.__module__, function.__qualname__, _plain(code), cells, found
    return hashlib.sha256(repr(whole).encode()).hexdigest()


def _content(value: Any) -> Any:
    """Return what identifies a value that a kernel uses: the identity of a function, a number itself."""
    function = getattr(value, "py_func", getattr(value, "_defn", value))  # the first of a kernel, the second of an intrinsic
    if isinstance(function, FunctionType):
        is_ours = (function.__module__ or "").startswith(f"{PACKAGE}.")
        return identity(function) if is_ours else f"{function.__module__}.{function.__qualname__}"
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype, types.Type)):
        return type(value).__name__, repr(value)
    return type(value).__name__  # a class or a library's object: the sources define it


def symbol_id(function: FunctionType, args: tuple[Any, ...]) -> str:
    """Return the hash in the name of a function that is compiled for some types of arguments."""
    return hashlib.sha256(f"{identity(function)}{args}".encode()).hexdigest()[:16]


class NamingCompiler(Compiler):  # type: ignore[misc]  # numba has no types
    """Numba's compiler, but the symbols of a function carry a hash of it, not a count."""

    def define_pipelines(self) -> Any:
        """Set the name that symbols are made of, before the first pass."""
        function = self.state.func_id
        function.func_qualname = f"{symbol_id(function.func, self.state.args)}.{function.func_qualname}"
        function.unique_id = 0
        return super().define_pipelines()


# --- Files ---


def folders() -> list[str]:
    """Return the folders for compiled code: it is read from the first that has it, and kept in the first that is writable."""
    is_frozen = getattr(sys, "frozen", False)  # its folder may be deleted when the process ends
    here = os.path.abspath(sys.executable if is_frozen else globals().get("__file__", sys.executable))
    package = os.path.dirname(here if is_frozen or "__file__" not in globals() else os.path.dirname(here))
    within = f"{PACKAGE}_{hashlib.sha1(package.encode()).hexdigest()}"
    if numba.config.CACHE_DIR:
        return [os.path.join(numba.config.CACHE_DIR, within)]
    of_user = AppDirs(appname="numba", appauthor=False).user_cache_dir
    found = [] if is_frozen or "__file__" not in globals() else [os.path.join(package, "__pycache__")]
    return found + ([os.path.join(of_user, within)] if os.path.isabs(of_user) else [])  # "~/...": the home is not known


class KeptCode:
    """The code of functions on disk: a file for each signature and kind of CPU."""

    is_said = False  # once a process: that kernels are compiled
    is_told = False  # once a process: that nothing can be kept

    def __init__(self, name: str, functions: Sequence[Any]) -> None:
        self.name, self.functions = name, functions

    def _file(self, signature: Any, codegen: Any) -> tuple[str, bytes]:
        """Return the name of a file, the same for every version of the package, and the key, which differs between versions."""
        python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")
        which = repr((self.name, self._one(), signature, codegen.magic_tuple(), python))
        versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
        file = f"{self.name}-{hashlib.sha256(which.encode()).hexdigest()[:16]}.{python[0]}.nbc"
        return file, repr((which, list(map(identity, self.functions)), versions)).encode()

    def _one(self) -> tuple[Any, ...]:
        """Return what tells one function from others of its name; those that are kept together have a name of their own."""
        if len(self.functions) > 1:
            return ()
        (function,) = self.functions
        cells = [_content(cell.cell_contents) for cell in function.__closure__ or ()]
        return function.__module__, function.__qualname__, cells

    def load(self, signature: Any, codegen: Any) -> bytes | None:
        """Return what `save` has kept, or None."""
        file, key = self._file(signature, codegen)
        for folder in folders():
            try:
                with open(os.path.join(folder, file), "rb") as opened:
                    data = opened.read()
            except OSError:  # absent, most likely; if the folder cannot be used, `save` says so
                continue
            if data[:DIGEST] == hashlib.sha256(key + data[DIGEST:]).digest():
                return data[DIGEST:]
        return None

    def save(self, signature: Any, codegen: Any, data: bytes) -> None:
        """Keep code for later processes, or say why that fails."""
        file, key = self._file(signature, codegen)
        reason = _write(file, hashlib.sha256(key + data).digest() + data)
        if reason:
            self.tell(reason)

    def tell(self, reason: str) -> None:
        """Warn once a process."""
        if not KeptCode.is_told:
            KeptCode.is_told = True
            warnings.warn(
                f"jitslab keeps compiled code in memory only, and later processes compile it again: {reason}; "
                "the environment variable NUMBA_CACHE_DIR names a folder for it",
                KernelCacheWarning,
                stacklevel=2,
            )


class KernelCache(NullCache):  # type: ignore[misc]  # numba has no types
    """One function's code on disk, as Numba compiled it; Numba uses it like a cache of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function: Any = function
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.kept = KeptCode(name.replace("<", "").replace(">", ""), [function])

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what `save_overload` has kept, or None."""
        target_context.refresh()  # as Numba's own cache does: the code may use names that this registers
        data = self.kept.load(signature, target_context.codegen())
        return None if data is None else self.rebuilt(pickle.loads(data), target_context)

    def rebuilt(self, parts: Any, target_context: Any) -> Any:
        """Put a compiled function together from the parts that Numba keeps."""
        return CompileResult._rebuild(target_context, *parts)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled function for later processes, or say why that fails."""
        if symbol_id(self.function, compiled.signature.args) not in compiled.fndesc.mangled_name:
            self.kept.tell("this version of Numba does not give functions the names that tell them apart")
        elif compiled.library.has_dynamic_globals:
            self.kept.tell(f"{self.function.__qualname__} has an address of this process in it")
        else:
            self.kept.save(signature, compiled.codegen, dumps(compiled._reduce()))


def where_kept() -> str | None:
    """Return the folder that code will most likely be kept in; None: nothing can be kept."""
    for folder in folders():
        there = folder
        while not os.path.exists(there) and os.path.dirname(there) != there:
            there = os.path.dirname(there)
        if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
            return folder
    return None


def tell_compiling() -> None:
    """Say once a process that kernels are compiled: on the logger, or on a terminal if the logger does not show it."""
    if KeptCode.is_said or os.environ.get("JITSLAB_QUIET", "0") not in ("", "0"):
        return
    KeptCode.is_said = True
    folder = where_kept()
    kept = f"once, some 3 s; kept in {folder}" if folder else "some 3 s in every process: there is no folder to keep them in"
    line = f"{PACKAGE} compiles its kernels, {kept}"
    log = logging.getLogger(PACKAGE)
    log.info(line)
    with suppress(AttributeError, ValueError, OSError):  # the error stream may be missing or closed
        if sys.stderr.isatty() and not (log.isEnabledFor(logging.INFO) and log.hasHandlers()):
            sys.stderr.write(f"{line}\n")


def _write(file: str, data: bytes) -> str:
    """Write a file into the first folder that is writable; returns the reason if none is, else an empty text."""
    reason = "there is no folder for it"
    for folder in folders():
        path = os.path.join(folder, file)
        part = f"{path}.{os.urandom(8).hex()}.tmp"
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                with open(part, "wb") as opened:
                    opened.write(data)
                os.replace(part, path)  # a process that reads meanwhile sees a whole file, or none
            finally:
                if os.path.exists(part):
                    os.unlink(part)
        except OSError as error:
            reason = f"{path} cannot be written: {error.strerror}"
        else:
            return ""
    return reason

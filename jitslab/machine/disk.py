"""
The kernels' machine code on disk, and the names that its functions have for the linker.

Above `errors`, below `_native`.  Two things are done in another way than Numba does them:

- Numba tells functions of one name apart by a number: how many the process has compiled before.  Two processes can give one
  number to two functions; when their code is read from disk and linked, the linker keeps one of the two for both.  Here the
  name has a hash of all that the function is made of.
- Numba keeps an index and several bodies for each function, and checks neither: a torn file ends every later start, and of two
  processes that write at one time one may find the other's body under its key.  Here a file is one body and its digest; a
  file that is torn, or of another version, is not used and is written anew.
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

# What user code compiled against this version must not meet in another: it stands in the name of the cache's Numba type.
SOURCES = tuple(
    f"{folder}.{name}"
    for folder, names in {
        "machine": "addresses disk front library build compile memory pointers system owner cpython holder",
        "core": "layout vectors calls slab grow heap_table claim heap batch scan rebuild check process dispatch"
        " cache_calls guard_calls",
        "njit": "lowering birth cache",
        "sizes": "layout large opening kernels njit",
        "replay": "loops",
    }.items()
    for name in names.split()
)
PACKAGE = __name__.partition(".")[0]
DIGEST = 32  # bytes at the start of a file: the digest of its key and of what follows


# --- What a kernel is made of ---


def _bytes_of(module: str) -> bytes:
    """Return the file of a module, from wherever it is imported; of one that has none (frozen) what its code says."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
    assert spec is not None
    loader: Any = spec.loader
    if spec.origin is not None and hasattr(loader, "get_data"):
        try:
            return bytes(loader.get_data(spec.origin))
        except OSError:  # such a loader has data files, but not the modules
            pass
    return repr(_plain(loader.get_code(spec.name))).encode()


def _plain(code: CodeType) -> tuple[Any, ...]:
    """Return what code says, alike in every process (as `marshal` is not)."""
    constants = [
        _plain(each) if isinstance(each, CodeType) else sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each)
        for each in code.co_consts
    ]
    return code.co_name, code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


SOURCE_HASH = hashlib.sha256(b"".join(map(_bytes_of, SOURCES))).hexdigest()[:8]


@cache
def identity(function: FunctionType) -> str:
    """Hash all that compiled code of a function follows from: the sources, its own code, and what that finds by name."""
    globals_, code = function.__globals__, function.__code__
    spaces = [globals_, *(vars(value) for name in code.co_names if isinstance(value := globals_.get(name), ModuleType))]
    found = [(name, _content(space[name])) for space in spaces for name in code.co_names if name in space]
    cells = [_content(cell.cell_contents) for cell in function.__closure__ or ()]
    whole = SOURCE_HASH, function.__module__, function.__qualname__, _plain(code), cells, found
    return hashlib.sha256(repr(whole).encode()).hexdigest()


def _content(value: Any) -> Any:
    """Return what tells a value that a kernel finds from others: of a function its identity, of a number the number."""
    function = getattr(value, "py_func", getattr(value, "_defn", value))  # of a kernel, of an intrinsic
    if isinstance(function, FunctionType):
        is_ours = (function.__module__ or "").startswith(f"{PACKAGE}.")
        return identity(function) if is_ours else f"{function.__module__}.{function.__qualname__}"
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype, types.Type)):
        return type(value).__name__, repr(value)
    return type(value).__name__  # a class or a library's object: what it is stands in the sources


def symbol_id(function: FunctionType, args: tuple[Any, ...]) -> str:
    """Return what the name of a function compiled for arguments of some types has in it."""
    return hashlib.sha256(f"{identity(function)}{args}".encode()).hexdigest()[:16]


class NamingCompiler(Compiler):  # type: ignore[misc]  # numba has no types
    """Numba's compiler, but functions of one name are told apart by what they are made of, not by the number compiled before."""

    def define_pipelines(self) -> Any:
        """Set the name, before the first pass, that symbols are made of."""
        function = self.state.func_id
        function.func_qualname = f"{symbol_id(function.func, self.state.args)}.{function.func_qualname}"
        function.unique_id = 0
        return super().define_pipelines()


# --- Files ---


def folders() -> list[str]:
    """Where compiled code is looked for, in this order, and kept, in the first that can be written."""
    is_frozen = getattr(sys, "frozen", False)  # the package's own folder may be gone after the process
    here = os.path.abspath(sys.executable if is_frozen else globals().get("__file__", sys.executable))
    package = os.path.dirname(here if is_frozen or "__file__" not in globals() else os.path.dirname(here))
    within = f"{PACKAGE}_{hashlib.sha1(package.encode()).hexdigest()}"
    if numba.config.CACHE_DIR:
        return [os.path.join(numba.config.CACHE_DIR, within)]
    of_user = AppDirs(appname="numba", appauthor=False).user_cache_dir
    found = [] if is_frozen or "__file__" not in globals() else [os.path.join(package, "__pycache__")]
    return found + ([os.path.join(of_user, within)] if os.path.isabs(of_user) else [])  # "~/...": nobody knows a home


class KeptCode:
    """The code of functions on disk: a file for each signature and kind of CPU."""

    is_said = False  # that kernels are compiled, once a process
    is_told = False  # that nothing can be kept, likewise

    def __init__(self, name: str, functions: Sequence[Any]) -> None:
        self.name, self.functions = name, functions

    def _file(self, signature: Any, codegen: Any) -> tuple[str, bytes]:
        """Return the name of a file, the same for each version of the package, and the key, which tells the versions apart."""
        cells = [[_content(cell.cell_contents) for cell in each.__closure__ or ()] for each in self.functions]
        functions = [(each.__module__, each.__qualname__, found) for each, found in zip(self.functions, cells, strict=True)]
        python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")
        which = repr((functions, signature, codegen.magic_tuple(), python))
        versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
        file = f"{self.name}-{hashlib.sha256(which.encode()).hexdigest()[:16]}.{python[0]}.nbc"
        return file, repr((which, list(map(identity, self.functions)), versions)).encode()

    def load(self, signature: Any, codegen: Any) -> bytes | None:
        """Return what `save` has kept, or None."""
        file, key = self._file(signature, codegen)
        for folder in folders():
            try:
                with open(os.path.join(folder, file), "rb") as opened:
                    data = opened.read()
            except OSError:  # absent, most likely; if the folder is of no use, saving says so
                continue
            if data[:DIGEST] == hashlib.sha256(key + data[DIGEST:]).digest():
                return data[DIGEST:]
        return None

    def save(self, signature: Any, codegen: Any, data: bytes) -> None:
        """Keep code for later processes, or say why that cannot be."""
        file, key = self._file(signature, codegen)
        reason = _write(file, hashlib.sha256(key + data).digest() + data)
        if reason:
            self.tell(reason)

    def tell(self, reason: str) -> None:
        """Warn, once a process."""
        if not KeptCode.is_told:
            KeptCode.is_told = True
            warnings.warn(
                f"jitslab keeps compiled code in memory only, and later processes compile it again: {reason}; "
                "the environment variable NUMBA_CACHE_DIR names a folder for it",
                KernelCacheWarning,
                stacklevel=2,
            )


class KernelCache(NullCache):  # type: ignore[misc]  # numba has no types
    """One function's code on disk, as Numba compiled it; to Numba, a cache as its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function: Any = function
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.kept = KeptCode(name.replace("<", "").replace(">", ""), [function])

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what `save_overload` has kept, or None."""
        target_context.refresh()  # as Numba's own cache does: the code may name what it registers
        data = self.kept.load(signature, target_context.codegen())
        return None if data is None else self.rebuilt(pickle.loads(data), target_context)

    def rebuilt(self, parts: Any, target_context: Any) -> Any:
        """Return what Numba takes apart to keep it."""
        return CompileResult._rebuild(target_context, *parts)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled function for later processes, or say why that cannot be."""
        if symbol_id(self.function, compiled.signature.args) not in compiled.fndesc.mangled_name:
            self.kept.tell("this version of Numba does not give functions the names that tell them apart")
        elif compiled.library.has_dynamic_globals:
            self.kept.tell(f"{self.function.__qualname__} has an address of this process in it")
        else:
            self.kept.save(signature, compiled.codegen, dumps(compiled._reduce()))


def where_kept() -> str | None:
    """Return the folder that code is kept in, as far as can be told beforehand; None: nothing can be kept."""
    for folder in folders():
        there = folder
        while not os.path.exists(there) and os.path.dirname(there) != there:
            there = os.path.dirname(there)
        if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
            return folder
    return None


def tell_compiling() -> None:
    """Say, once a process, that kernels are compiled: on the logger, and on a terminal where that does not show it."""
    if KeptCode.is_said or os.environ.get("JITSLAB_QUIET", "0") not in ("", "0"):
        return
    KeptCode.is_said = True
    folder = where_kept()
    kept = f"once, some 3 s; kept in {folder}" if folder else "some 3 s in every process: there is no folder to keep them in"
    line = f"{PACKAGE} compiles its kernels, {kept}"
    log = logging.getLogger(PACKAGE)
    log.info(line)
    with suppress(AttributeError, ValueError, OSError):  # there may be no error stream, or a closed one
        if sys.stderr.isatty() and not (log.isEnabledFor(logging.INFO) and log.hasHandlers()):
            sys.stderr.write(f"{line}\n")


def _write(file: str, data: bytes) -> str:
    """Write a file into the first folder that takes it; returns why none does, or nothing."""
    reason = "there is no folder for it"
    for folder in folders():
        path = os.path.join(folder, file)
        part = f"{path}.{os.urandom(8).hex()}.tmp"
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                with open(part, "wb") as opened:
                    opened.write(data)
                os.replace(part, path)  # a process that reads meanwhile sees all of a file, or none
            finally:
                if os.path.exists(part):
                    os.unlink(part)
        except OSError as error:
            reason = f"{path} cannot be written: {error.strerror}"
        else:
            return ""
    return reason

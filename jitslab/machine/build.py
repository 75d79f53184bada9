"""
From a kernel to machine code.

`front.Front` emits a kernel from its source, `library` links and optimises it.  If `Front` cannot, Numba's own passes compile
it.  Entry points are compiled in groups: a kernel that several of them call is optimised once.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from functools import cache
from typing import Any

from numba import _dynfunc, types
from numba.core.ccallback import CFunc
from numba.core.compiler import Flags, _make_subtarget, compile_result
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]  # it has no other name
from numba.core.funcdesc import PythonFunctionDescriptor
from numba.core.lowering import Environment
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature
from numba.core.targetconfig import ConfigStack
from numba.core.typing import signature

from .disk import KeptCode, KernelCache, NamingCompiler, symbol_id, tell_compiling
from .front import Front, UnsupportedError
from .library import EntryLibrary, KernelLibrary

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


@cache
def _flags() -> Any:
    """Return Numba's flags for all kernels."""
    flags = Flags()
    cpu_target.options.parse_as_flags(flags, OPTIONS)
    return flags


@cache
def _target() -> Any:
    """Return Numba's target for all kernels."""
    return _make_subtarget(cpu_target.target_context, _flags())


def _is_within() -> bool:
    """Whether the kernel is compiled because another kernel calls it."""
    libraries = cpu_target.target_context._codelib_stack
    return bool(libraries) and isinstance(libraries[-1], KernelLibrary)


def target() -> Any:
    """Return Numba's target for all kernels, with everything that was registered meanwhile."""
    if not _is_within():
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
    return _target()


def emit(function: Any, arguments: tuple[Any, ...], is_inlined: bool, c_name: str = "") -> tuple[Any, KernelLibrary]:
    """
    Emit a kernel for some types of arguments; if `c_name` is not empty, also a C function that calls it.

    Returns
    -------
    described, library
        The descriptor that Numba calls it by, and the library that it is linked from.

    Raises
    ------
    UnsupportedError
        If only Numba's own passes can compile the kernel.
    """
    context = target()
    name = f"{symbol_id(function, arguments)}.{function.__qualname__}"
    names = function.__code__.co_varnames[: len(arguments)]
    library = KernelLibrary(context.codegen(), name)

    def describe(result: Any) -> Any:
        return PythonFunctionDescriptor(
            True, function.__module__, name, name, "", None, result, None, names, (), None, arguments, is_inlined, uid=0
        )

    with ConfigStack().enter(_flags().copy()), context.push_code_library(library):
        described, module = Front(function, context, describe, arguments).emit(library.new_module, c_name)
    library.add_ir_module(module)
    return described, library


# --- Kernels ---


class KernelCompiler(_FunctionCompiler):  # type: ignore[misc]  # numba has no types
    """The compiler of a kernel's dispatcher."""

    def _compile_core(self, args: tuple[Any, ...], return_type: Any) -> Any:
        """Compile the kernel for some types of arguments."""
        try:
            described, library = emit(self.py_func, args, bool(self.targetoptions["forceinline"]))
        except UnsupportedError:
            return super()._compile_core(args, return_type)
        return as_result(described, library)


def as_result(described: Any, library: KernelLibrary) -> Any:
    """Return the result that Numba's dispatchers keep of a kernel; its entry point refuses calls from Python."""
    context = cpu_target.target_context
    environment = Environment.from_fndesc(described)
    name = described.qualname.rpartition(".")[2]
    stand_in = _dynfunc.make_function(described.lookup_module(), name, "", 0, environment, (library,))
    context.insert_user_function(stand_in, described, [library])
    return compile_result(
        typing_context=context.typing_context,
        target_context=context,
        entry_point=stand_in,
        typing_error=None,
        type_annotation="",
        signature=signature(described.restype, *described.argtypes),
        objectmode=False,
        lifted=(),
        fndesc=described,
        library=library,
        call_helper=None,
        environment=environment,
        metadata={},
        reload_init=[],
        referenced_envs=(),
    )


class LinkedCache(KernelCache):
    """A kernel's code on disk, together with all that it calls, ready to be linked into user code."""

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what `save_overload` has kept, or None."""
        target()
        data = self.kept.load(signature, target_context.codegen())
        if data is None:
            return None
        loaded = pickle.loads(data)
        if len(loaded) != 2:
            return self.rebuilt(loaded, target_context)
        described, code = loaded
        library = KernelLibrary(target_context.codegen(), described.qualname, code)
        return as_result(described, library)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a kernel when it is first linked into user code: now, unless another kernel is being compiled."""
        library = compiled.library
        if not isinstance(library, KernelLibrary):
            super().save_overload(signature, compiled)
            return
        if library.has_dynamic_globals:
            self.kept.tell(f"{self.function.__qualname__} has an address of this process in it")
            return
        library.when_linked = lambda code: self.kept.save(signature, compiled.codegen, dumps((compiled.fndesc, code)))
        if not _is_within():
            library._get_module_for_linking()


# --- Entry points ---


class Group:
    """
    Entry points that are compiled together when one of them is first needed, and kept in one file.

    The entry points of a folder, or of the GROUP that their module names, are a group.  An entry point that is defined after
    the group was compiled begins the next one; outside the package each is on its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.functions: list[Any] = []
        self.made: dict[Any, tuple[int, Any]] = {}  # address and library

    def make(self) -> None:
        """Compile the functions, or read them from disk."""
        context = target()
        codegen = context.codegen()
        arguments = {each: (types.int64,) * each.__code__.co_argcount for each in self.functions}
        names = {each: f"jitslab.entry.{symbol_id(each, args)}.{each.__qualname__}" for each, args in arguments.items()}
        kept = KeptCode(self.name, self.functions)
        data = kept.load((), codegen)
        found, code = pickle.loads(data) if data is not None else ([], None)
        library = EntryLibrary(codegen, f"jitslab.{self.name}", code)
        if code is None:
            found = self._link(library, names, arguments)
        addresses = library.addresses_of(found) if found else {}
        if found and code is None and library.has_dynamic_globals:
            kept.tell(f"{self.name} has an address of this process in it")
        elif found and code is None:
            kept.save((), codegen, pickle.dumps((found, library.code)))
        for function, name in names.items():
            self.made[function] = (addresses[name], library) if name in found else by_numba(function, arguments[function])

    def _link(self, library: EntryLibrary, names: dict[Any, str], arguments: dict[Any, Any]) -> list[str]:
        """Compile the functions that `Front` can compile; returns their names."""
        kernels = {}
        for function, name in names.items():
            with suppress(UnsupportedError):
                kernels[name] = emit(function, arguments[function], True, name)[1]
                tell_compiling()
        library.link(kernels.values(), set(kernels))
        return list(kernels)


class EntryCache(KernelCache):
    """The code of an entry point that Numba's own passes compile."""

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return what `save_overload` has kept; None: the entry point is compiled now."""
        loaded = super().load_overload(signature, target_context)
        if loaded is None:
            tell_compiling()
        return loaded


def by_numba(function: Any, arguments: tuple[Any, ...]) -> tuple[int, Any]:
    """Compile an entry point by Numba's own passes; returns its address, and the library that keeps the code alive."""
    options = {"error_model": "numpy", "forceinline": True}  # inlined into the C function, which would otherwise call it
    wanted = normalize_signature(types.int64(*arguments))
    compiled: Any = CFunc(function, wanted, {}, options, NamingCompiler)
    compiled._cache = EntryCache(function)
    compiled.compile()
    return int(compiled.address), compiled

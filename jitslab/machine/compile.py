"""How kernels are compiled: all options of Numba, entry points with a C address, and names that machine code finds objects by."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol, ffi, llvm_version_info
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic as _intrinsic

from .addresses import need_room_for_code
from .build import OPTIONS, Group, KernelCompiler, LinkedCache
from .disk import PACKAGE, NamingCompiler

if llvm_version_info[0] < 17:  # it restores a register over the result of a function with `preserve_mostcc`
    raise ImportError(f"jitslab needs Numba 0.62 or later, got {numba.__version__}: its LLVM makes addresses of handles")

int64: Any = np.int64  # Numba's int64 in kernels; Any, since a type checker sees Python's ints there
uint64: Any = np.uint64
F = TypeVar("F", bound=Callable[..., Any])
Intrinsic = Callable[..., Any]

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
PTR = I8.as_pointer()
X86 = platform.machine() in ("x86_64", "AMD64")


# --- One decorator for every kernel ---


def inlined(function: F) -> F:
    """As `kernel`, but always inlined: for a fast path that LLVM finds too long."""
    return kernel(function, True)


def kernel(function: F, forceinline: bool = False) -> F:
    """
    Compile a function that other kernels and user code call.

    Every option is spelled out: an unset one is inherited from the first caller, and would be saved with the kernel.  Python
    cannot call a kernel, which halves the compile; it calls an `Entry`.
    """
    disabled, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 0  # kernels are compiled even if NUMBA_DISABLE_JIT is set
    try:
        made = numba.njit(pipeline_class=NamingCompiler, forceinline=forceinline, **OPTIONS)(function)
    finally:
        numba.config.DISABLE_JIT = disabled
    by = made._compiler
    made._compiler = KernelCompiler(function, by.targetdescr, by.targetoptions, by.locals, by.pipeline_class)
    made._cache = LinkedCache(function)
    template = made.get_call_template
    made.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)  # never compiled once a literal
    return made  # type: ignore[no-any-return]  # a dispatcher stands for the function


def lean(function: Callable[..., Any], is_cold: bool = False) -> Intrinsic:
    """
    As `kernel`, of two or three int64, but called like a C function: arguments and results in registers, and no status.

    A call by Numba's convention returns its result through memory, and a status.  If it is not inlined, it takes as long as a
    fast path.  A lean kernel is always inlined.  A cold one never is; it keeps its caller's registers (preserve_mostcc): the
    fast path that ends in it saves none.
    """
    body: Any = inlined(function)
    arity = function.__code__.co_argcount

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        compiled = body.overloads[signature.args]
        context.active_code_library.add_linking_library(compiled.library)
        shape = ir.FunctionType(context.get_value_type(signature.return_type), [I64] * arity)
        attributes = ("noinline", "nounwind", "cold") if is_cold else ("alwaysinline", "nounwind")
        thunk, is_new = linkonce(builder, f"jitslab.{compiled.fndesc.mangled_name}", shape, attributes)
        convention = "preserve_mostcc" if is_cold else "ccc"
        if is_new:
            thunk.calling_convention = convention
            inner = ir.IRBuilder(thunk.append_basic_block())
            _, result = context.call_internal_no_propagate(inner, compiled.fndesc, signature, thunk.args)
            inner.ret(result)
        return builder.call(thunk, args, cconv=convention)

    def typed() -> tuple[Any, Any]:
        wanted = (types.int64,) * arity
        body.compile(wanted)
        return body.overloads[wanted].signature, emit

    def of_two(typing: Any, a: Any, b: Any) -> Any:
        return typed()

    def of_three(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return typed()

    of_two.__doc__ = of_three.__doc__ = function.__doc__
    return intrinsic(of_two if arity == 2 else of_three)


def cold(function: Callable[..., Any]) -> Intrinsic:
    """As `lean`, but never inlined."""
    return lean(function, True)


_open_groups: dict[str, Group] = {}  # by name: those that are not compiled yet


def _group_of(function: Any) -> Group:
    """Return the group of an entry point."""
    module = function.__module__ or ""
    if module.startswith(f"{PACKAGE}."):
        name = function.__globals__.get("GROUP", module.split(".")[1])
        group = _open_groups.setdefault(name, Group(name))
    else:
        group = Group(f"{module.rpartition('.')[2]}.{function.__qualname__}".replace("<", "").replace(">", ""))
    group.functions.append(function)
    return group


class Entry:
    """
    A kernel with a C address: int64 arguments, int64 result.  It is compiled when it is first needed, and kept for good.

    Kernels call it through the ENTRIES of a CONTROL row: so it is compiled once and not linked into every caller.  Python
    calls it by ctypes, which gives up the GIL meanwhile.
    """

    result: Any = ctypes.c_int64
    shape: Any = staticmethod(ctypes.CFUNCTYPE)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._made: list[tuple[Callable[..., int], int, Any]] = []
        self._group = _group_of(function)

    def compile(self) -> tuple[Callable[..., int], int, Any]:
        """Return the function for Python, the address, and the library: compiled under Numba's lock, which a fork waits for."""
        if self._made:
            return self._made[0]
        with global_compiler_lock:
            if not self._made:
                if self.function not in self._group.made:
                    need_room()
                    _open_groups.pop(self._group.name, None)
                    disabled, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 0
                    try:
                        self._group.make()
                    finally:
                        numba.config.DISABLE_JIT = disabled
                address, library = self._group.made[self.function]
                keep(library)
                arity = self.function.__code__.co_argcount
                self._made.append((self.shape(self.result, *[ctypes.c_int64] * arity)(address), address, library))
        return self._made[0]

    @property
    def address(self) -> int:
        """The address of the C function."""
        return self.compile()[1]

    def __call__(self, *args: int) -> int:
        """Call it from Python."""
        return self.compile()[0](*args)


class HeldEntry(Entry):
    """An `Entry` that Python calls while it holds the GIL: no Python of another thread runs between its steps."""

    shape = staticmethod(ctypes.PYFUNCTYPE)


class ObjectEntry(HeldEntry):
    """A `HeldEntry` that returns a new reference to a Python object; 0 with an exception set."""

    result = ctypes.py_object


def fill_table(row: Any, table: dict[str, Entry]) -> None:
    """Write the address of each entry point of a table into the field of its name, in a row of shape (1,)."""
    for name, entry in table.items():
        row[name] = entry.address


# Where the locks are that Numba and llvmlite hold while they compile, in the order in which a thread takes them.
COMPILE_LOCKS: tuple[tuple[Any, str], ...] = ((global_compiler_lock, "_lock"), (ffi.lib._lock, "_lock"))


def keep(*objects: Any) -> None:
    """Keep objects for good: machine code may use them after the interpreter has cleared its modules."""
    for obj in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def need_room() -> None:
    """Raise if the system has no memory for more machine code."""
    need_room_for_code()


def intrinsic(function: Callable[..., Any]) -> Intrinsic:
    """Make an intrinsic (numba's decorator, with a type)."""
    return _intrinsic(function)  # type: ignore[no-any-return]  # numba has no types


def literal_intrinsic(function: Callable[..., Any]) -> Intrinsic:
    """Make an intrinsic that sees the values of literals."""
    return _intrinsic(prefer_literal=True)(function)  # type: ignore[no-any-return]  # numba has no types


# --- Names: machine code that had an address in it could not be kept on disk ---


def name_address(name: str, address: int) -> None:
    """Give an address a name, for `c_object`."""
    add_symbol(name, address)


def name_object(name: str, obj: Any) -> None:
    """Give an object, which is kept for good, a name by which machine code finds it."""
    name_address(name, id(obj))
    keep(obj)


@literal_intrinsic
def c_object(typing: Any, name: Any) -> Any:
    """Return the address of one of CPython's own objects, or the address that `name_address` gave a name."""
    symbol = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(context.get_python_api(builder).get_c_object(symbol), I64)

    return types.int64(name), emit


@intrinsic
def c_function(typing: Any, function: Any) -> Any:
    """Return the address of a C function of int64s that calls a kernel."""
    arguments = (types.int64,) * function.dispatcher.py_func.__code__.co_argcount
    function.get_call_type(typing, arguments, {})
    compiled = function.dispatcher.overloads[arguments]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shape = ir.FunctionType(I64, [I64] * len(arguments))
        c_function = ir.Function(builder.module, shape, f"jitslab.{compiled.fndesc.mangled_name}")
        c_function.linkage = "internal"
        inner = ir.IRBuilder(c_function.append_basic_block())
        context.add_linking_libs([compiled.library])
        inner.ret(context.call_internal_no_propagate(inner, compiled.fndesc, compiled.signature, c_function.args)[1])
        return builder.ptrtoint(c_function, I64)

    return types.int64(function), emit


def linkonce(builder: Any, name: str, function_type: Any, attributes: tuple[str, ...]) -> tuple[Any, bool]:
    """Return the module's private function of a name, and whether it is new: then it needs a body."""
    function = builder.module.globals.get(name)
    if function is not None:
        return function, False
    function = ir.Function(builder.module, function_type, name)
    function.linkage = "linkonce_odr"
    for attribute in attributes:
        set.add(function.attributes, attribute)  # llvmlite refuses some of these names
    return function, True

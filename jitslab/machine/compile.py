"""How kernels are compiled: all options of Numba, entry points with a C address, names that machine code finds objects by."""

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
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic as _intrinsic

from .addresses import need_room_for_code
from .disk import KernelCache, NamingCompiler

if llvm_version_info[0] < 17:  # it restores a register over the result of a function with `preserve_mostcc`
    raise ImportError(f"jitslab needs Numba 0.62 or later, got {numba.__version__}: its LLVM makes addresses of handles")

int64: Any = np.int64  # in kernels: Numba's int64; Any, since a kernel's ints are Python's to a type checker
uint64: Any = np.uint64
F = TypeVar("F", bound=Callable[..., Any])
Intrinsic = Callable[..., Any]

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
PTR = I8.as_pointer()
X86 = platform.machine() in ("x86_64", "AMD64")


# --- One decorator for every kernel ---


def _compile(make: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compile with the cache on disk; compiled also under NUMBA_DISABLE_JIT."""
    disabled, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 0
    try:
        return make(function, KernelCache(function))
    finally:
        numba.config.DISABLE_JIT = disabled


def inlined(function: F) -> F:
    """As `kernel`, but compiled into its callers whatever its size: for a fast path that LLVM finds too long."""
    return kernel(function, True)


def kernel(function: F, forceinline: bool = False) -> F:
    """
    Compile a function that other kernels, and user code, call.

    Every option is spelled out: unset ones are inherited from the first caller, and would be saved with the kernel.  Nothing
    is made for calls from Python: that is what `Entry` is for, and it halves the compile.
    """

    def make(f: Callable[..., Any], cache: Any) -> Any:
        dispatcher = numba.njit(
            pipeline_class=NamingCompiler,
            error_model="numpy",
            fastmath=False,
            boundscheck=False,
            forceinline=forceinline,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
        )(f)
        dispatcher._cache = cache
        template = dispatcher.get_call_template
        dispatcher.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)  # not once a literal
        return dispatcher

    return _compile(make, function)  # type: ignore[no-any-return]  # a dispatcher stands for the function


def lean(function: Callable[..., Any], is_cold: bool = False) -> Intrinsic:
    """
    As `kernel`, of two or three int64, called as a function of C is: arguments and results in registers, and no status.

    Numba's own calls hand results over through memory and answer a status; where one of them is not compiled into its caller
    that is as long as a fast path.  A lean one is, always.  A cold one never is, and it keeps its caller's registers
    (preserve_mostcc): the fast path that ends in it needs to save none.
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
    """As `lean`, never compiled into a caller."""
    return lean(function, True)


class Entry:
    """
    A kernel with a C address: int64 arguments, int64 result.  Compiled when it is first needed, kept for good.

    Kernels call it through a control block's table, so that it is compiled once and not linked into every caller.  Python
    calls it by ctypes, which gives up the GIL meanwhile.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._made: list[tuple[Callable[..., int], int, Any]] = []

    def compile(self) -> tuple[Callable[..., int], int, Any]:
        """Return what Python calls, the address, and Numba's function: made under Numba's lock, which a fork waits for."""
        if self._made:
            return self._made[0]

        def make(f: Callable[..., Any], cache: Any) -> Any:
            signature = sigutils.normalize_signature(types.int64(*[types.int64] * f.__code__.co_argcount))
            options = {"error_model": "numpy", "forceinline": True}  # into the C function: it would be a call of its own
            c_function: Any = CFunc(f, signature, {}, options, NamingCompiler)
            c_function._cache = cache
            c_function.compile()
            return c_function

        with global_compiler_lock:
            if not self._made:
                need_room()
                compiled = _compile(make, self.function)
                keep(compiled)
                self._made.append((self.as_function(compiled), int(compiled.address), compiled))
        return self._made[0]

    def as_function(self, compiled: Any) -> Callable[..., int]:
        """Return what Python calls."""
        return compiled.ctypes  # type: ignore[no-any-return]  # numba has no types

    @property
    def address(self) -> int:
        """Address of the C function."""
        return self.compile()[1]

    def __call__(self, *args: int) -> int:
        """Call it from Python."""
        return self.compile()[0](*args)


class HeldEntry(Entry):
    """An `Entry` that Python calls without giving the GIL up: no Python of another thread comes between its steps."""

    result: Any = ctypes.c_int64

    def as_function(self, compiled: Any) -> Callable[..., int]:
        """Return what Python calls."""
        arity = self.function.__code__.co_argcount
        return ctypes.PYFUNCTYPE(self.result, *[ctypes.c_int64] * arity)(compiled.address)


class ObjectEntry(HeldEntry):
    """A `HeldEntry` that returns a new reference to a Python object; 0 with an exception set."""

    result = ctypes.py_object


# Where the locks of Numba and llvmlite are that a thread holds while it compiles, in the order in which it takes them.
COMPILE_LOCKS: tuple[tuple[Any, str], ...] = ((global_compiler_lock, "_lock"), (ffi.lib._lock, "_lock"))


def keep(*objects: Any) -> None:
    """Keep objects for good: machine code may run, and look at them, after the interpreter took its modules' globals apart."""
    for obj in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def need_room() -> None:
    """Raise if the system has no memory for more machine code."""
    need_room_for_code()


def intrinsic(function: Callable[..., Any]) -> Intrinsic:
    """Make an intrinsic (numba's decorator, with a type)."""
    return _intrinsic(function)  # type: ignore[no-any-return]  # numba has no types


def literal_intrinsic(function: Callable[..., Any]) -> Intrinsic:
    """Make an intrinsic that takes literals where it is given them."""
    return _intrinsic(prefer_literal=True)(function)  # type: ignore[no-any-return]  # numba has no types


# --- What is known by a name where machine code is c_object, so that it can be kept on disk ---


def name_address(name: str, address: int) -> None:
    """Give an address the name that `c_object` finds it by."""
    add_symbol(name, address)


def name_object(name: str, obj: Any) -> None:
    """Have machine code find an object, which is kept for good, by a name: with its address it could not be kept on disk."""
    name_address(name, id(obj))
    keep(obj)


@literal_intrinsic
def c_object(typing: Any, name: Any) -> Any:
    """Address of one of CPython's own objects, or of what `name_address` gave a name."""
    symbol = name.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(context.get_python_api(builder).get_c_object(symbol), I64)

    return types.int64(name), emit


@intrinsic
def c_function(typing: Any, function: Any) -> Any:
    """The address of a C function of int64s that calls a kernel."""
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
    """Return the module's private function of that name, and whether it is new and wants a body."""
    function = builder.module.globals.get(name)
    if function is not None:
        return function, False
    function = ir.Function(builder.module, function_type, name)
    function.linkage = "linkonce_odr"
    for attribute in attributes:
        set.add(function.attributes, attribute)  # some of them llvmlite does not know
    return function, True

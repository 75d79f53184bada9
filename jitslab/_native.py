"""
The only file with addresses: typed loads and stores, record views, atomics, thread identity, hints to LLVM.

Below everything but `layout` and `_disk`.  Kernels see an address as an int64, and a heap as a `HeapPointer`: through an integer
LLVM forgets what it knows of a pointer, and the frozen fields of a heap would be loaded anew in every turn of a loop.

Preconditions of every load and store here: the address is of live memory of that size, aligned to its type.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol, ffi, llvm_version_info
from numba import from_dtype, types
from numba.core import cgutils, sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic as _intrinsic

from ._disk import SOURCE_HASH, KernelCache, NamingCompiler
from .layout import CONTROL, HEAP, HEAP_BYTES, HEAPS, PROCESS, RUN, SLAB, TAKEN, C, H

if llvm_version_info[0] < 17:  # it restores a register over the result of a function with `preserve_mostcc`
    raise ImportError(f"jitslab needs Numba 0.62 or later, got {numba.__version__}: its LLVM makes addresses of handles")

int64: Any = np.int64  # in kernels: Numba's int64; Any, since a kernel's ints are Python's to a type checker
F = TypeVar("F", bound=Callable[..., Any])
Intrinsic = Callable[..., Any]

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
PTR = I8.as_pointer()
HeapPointer = types.CPointer(types.uint8)
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
        thunk, is_new = _linkonce(builder, f"jitslab.{compiled.fndesc.mangled_name}", shape, attributes)
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
    from ._os import need_room_for_code  # which is above this

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


# --- Addresses and pointers ---


def _typed(builder: Any, value: Any, to: Any) -> Any:
    """int64 address or pointer -> pointer to `to`."""
    pointer = to.as_pointer()
    return builder.inttoptr(value, pointer) if isinstance(value.type, ir.IntType) else builder.bitcast(value, pointer)


def _offset(builder: Any, value: Any, n: int) -> Any:
    """N bytes further, keeping pointers pointers."""
    return builder.add(value, I64(n)) if isinstance(value.type, ir.IntType) else builder.gep(value, [I64(n)])


def _make_pointer_cast(pointer: Any) -> Intrinsic:
    @intrinsic
    def cast(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return pointer(types.int64), emit

    return cast


u4_array = _make_pointer_cast(types.CPointer(types.uint32))  # address -> array of u4, for loops that vectorise
i8_array = _make_pointer_cast(types.CPointer(types.int64))
heap_pointer = _make_pointer_cast(HeapPointer)


@intrinsic
def heap_address(typing: Any, heap: Any) -> Any:
    """Address of a heap."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return types.int64(HeapPointer), emit


@literal_intrinsic
def advance(typing: Any, base: Any, n: Any) -> Any:
    """`base` (address or heap) and n literal bytes further, of the same type."""
    bytes_ = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _offset(builder, args[0], bytes_)

    return base(base, n), emit


@literal_intrinsic
def frozen(typing: Any, base: Any, offset: Any) -> Any:
    """int64 field that never changes after creation: LLVM may load it once for a whole loop."""
    if not isinstance(offset, types.IntegerLiteral):
        return None
    n = offset.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_typed(builder, _offset(builder, args[0], n), I64), align=8)
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return value

    return types.int64(base, offset), emit


def _make_load_store(bits: int, order: str | None) -> tuple[Intrinsic, Intrinsic]:
    word = ir.IntType(bits)

    @intrinsic
    def load(typing: Any, base: Any, index: Any) -> Any:
        """Word `index` of the array at `base`, as int64 (zero-extended)."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at = builder.gep(_typed(builder, args[0], word), [args[1]])
            value = builder.load_atomic(at, order, bits // 8) if order else builder.load(at, align=bits // 8)
            return value if bits == 64 else builder.zext(value, I64)

        return types.int64(base, types.int64), emit

    @intrinsic
    def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
        """Low bits of `value` into word `index` of the array at `base`."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at = builder.gep(_typed(builder, args[0], word), [args[1]])
            low = args[2] if bits == 64 else builder.trunc(args[2], word)
            if order:
                builder.store_atomic(low, at, "release" if order == "acquire" else order, bits // 8)
            else:
                builder.store(low, at, align=bits // 8)
            return context.get_dummy_value()

        return types.void(base, types.int64, types.int64), emit

    return load, store


load8, store8 = _make_load_store(64, None)
load4, store4 = _make_load_store(32, None)
load8_acquire, store8_release = _make_load_store(64, "acquire")
load8_relaxed, store8_relaxed = _make_load_store(64, "monotonic")
load1, store1 = _make_load_store(8, None)
load2, _ = _make_load_store(16, None)
load4_relaxed, _ = _make_load_store(32, "monotonic")
_, store4_release = _make_load_store(32, "acquire")


def _make_view(dtype: np.dtype[Any]) -> Intrinsic:
    row = from_dtype(dtype)

    @intrinsic
    def view(typing: Any, base: Any) -> Any:
        """The metadata row at `base`: fields are plain loads and stores."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = context.get_value_type(row)
            return builder.inttoptr(args[0], to) if isinstance(args[0].type, ir.IntType) else builder.bitcast(args[0], to)

        return row(base), emit

    return view


control_at, heap_at, process_at = _make_view(CONTROL), _make_view(HEAP), _make_view(PROCESS)
slab_view = _make_view(SLAB)


@intrinsic
def copy_bytes(typing: Any, to: Any, source: Any, n: Any) -> Any:
    """Copy n bytes between places that do not overlap; a constant n becomes plain moves."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], PTR), builder.inttoptr(args[1], PTR), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def zero_bytes(typing: Any, to: Any, n: Any) -> Any:
    """Zero n bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], PTR), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


# --- Atomics ---


@intrinsic
def compare_exchange(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Store `new` if the int64 at `address` is `old`; whether it was."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], I64.as_pointer())
        return builder.extract_value(builder.cmpxchg(at, args[1], args[2], "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


def _make_rmw(operation: str, order: str) -> Intrinsic:
    @intrinsic
    def update(typing: Any, address: Any, value: Any) -> Any:
        """Update the int64 at `address`; what it was before."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, builder.inttoptr(args[0], I64.as_pointer()), args[1], order)

        return types.int64(types.int64, types.int64), emit

    return update


fetch_add, fetch_or = _make_rmw("add", "monotonic"), _make_rmw("or", "monotonic")


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name, params = ("llvm.x86.sse2.pause", []) if X86 else ("llvm.aarch64.hint", [I32])
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), params), name)
        builder.call(function, [I32(1)] if params else [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def thread_pointer(typing: Any) -> Any:
    """Identity of the calling thread among the live ones; recurs after a thread's end."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_thread_pointer(builder), I64)

    return types.int64(), emit


def _thread_pointer(builder: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(PTR, []), "llvm.thread.pointer")
    return builder.call(function, [])


# --- Bits and hints ---


def _make_expect(outcome: int) -> Intrinsic:
    @intrinsic
    def expect(typing: Any, condition: Any) -> Any:
        """`condition`, which is nearly always so."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I1, [I1, I1]), "llvm.expect.i1")
            return builder.call(function, [args[0], I1(outcome)])

        return types.boolean(types.boolean), emit

    return expect


likely, unlikely = _make_expect(1), _make_expect(0)


def _make_prefetch(to_write: int) -> Intrinsic:
    @intrinsic
    def prefetch(typing: Any, address: Any) -> Any:
        """Ask for the line at `address`; any address will do."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            params = ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, params, "llvm.prefetch.p0")
            builder.call(function, [builder.inttoptr(args[0], PTR), I32(to_write), I32(3), I32(1)])
            return context.get_dummy_value()

        return types.void(types.int64), emit

    return prefetch


prefetch_read, prefetch_write = _make_prefetch(0), _make_prefetch(1)


@intrinsic
def live_mask(typing: Any, address: Any) -> Any:
    """Bit i is set where word i of the 64 generations at `address` is odd."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = 16
        vector = builder.inttoptr(args[0], ir.VectorType(I32, lanes).as_pointer())
        mask = I64(0)
        for k in range(64 // lanes):
            words = builder.load(builder.gep(vector, [I64(k)]), align=4)
            odd = builder.bitcast(builder.trunc(words, ir.VectorType(I1, lanes)), ir.IntType(lanes))
            mask = builder.or_(mask, builder.shl(builder.zext(odd, I64), I64(lanes * k)))
        return mask

    return types.int64(types.int64), emit


@intrinsic
def lowest_bit(typing: Any, x: Any) -> Any:
    """Index of the lowest bit set; 64 if there is none."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], I1(0))

    return types.int64(types.int64), emit


@intrinsic
def popcount(typing: Any, x: Any) -> Any:
    """Count the bits set."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), emit


@intrinsic
def mixed(typing: Any, x: Any) -> Any:
    """`x * MIX`, wrapping: Numba's own product of signed numbers would have no meaning where it overflows."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.mul(args[0], I64(MIX))

    return types.int64(types.int64), emit


@literal_intrinsic
def shift_right(typing: Any, x: Any, n: Any) -> Any:
    """`x >> n` of the bits, as an int64 that LLVM knows not to be negative."""
    bits = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.lshr(args[0], I64(bits))

    return types.int64(types.int64, n), emit


# --- Neighbours: slots in a row, several an instruction ---


def _lanes(builder: Any, address: Any, bits: int, n: int) -> Any:
    """Pointer to n words as one vector."""
    return _typed(builder, address, ir.VectorType(ir.IntType(bits), n))


def _counted(builder: Any, first: Any, n: int, step: int = 1) -> Any:
    """Vector of `first` and the n - 1 numbers after it; with step -1 the highest comes first."""
    vector = ir.VectorType(first.type, n)
    return builder.add(_splat(builder, first, n), ir.Constant(vector, list(range(n))[::step]))


def _splat(builder: Any, value: Any, n: int) -> Any:
    """Vector of n times one value."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, n), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, n), [0] * n))


def _every(vector: Any, value: int) -> Any:
    """Constant vector of the type of another, all of one value."""
    return ir.Constant(vector.type, [value] * vector.type.count)


def _none(builder: Any, conditions: Any) -> Any:
    """Whether no lane of a vector of conditions is true."""
    bits = ir.IntType(conditions.type.count)
    return builder.icmp_unsigned("==", builder.bitcast(conditions, bits), bits(0))


@literal_intrinsic
def make_row_live(typing: Any, words: Any, first: Any, out: Any, n: Any) -> Any:
    """
    Make the n slots from `first` on live if all are free and none is retired; whether they were.

    words  int64   address of the generations
    out    int64   address of n handles
    """
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, first, out = args[:3]
        at = _lanes(builder, builder.add(words, builder.shl(first, I64(2))), 32, lanes)
        old = builder.load(at, align=4)
        taken = builder.and_(old, _every(old, TAKEN))
        are_free = _none(builder, builder.icmp_unsigned("!=", taken, _every(old, 0)))
        with builder.if_then(are_free, likely=True):
            builder.store(builder.or_(old, _every(old, 1)), at, align=4)
            slots = _counted(builder, first, lanes)
            cycles = builder.shl(builder.zext(old, slots.type), _every(slots, 31))
            builder.store(builder.or_(cycles, slots), _lanes(builder, out, 64, lanes), align=8)
        return are_free

    return types.boolean(types.int64, types.int64, types.int64, n), emit


@literal_intrinsic
def free_row(typing: Any, words: Any, first: Any, handles: Any, n: Any) -> Any:
    """
    Free n records if the handles at an address are those of the n slots from `first` on and all are live; whether they were.

    words    int64   address of the generations
    handles  int64   address of n handles
    """
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, first, address = args[:3]
        handles = builder.load(_lanes(builder, address, 64, lanes), align=8)
        at = _lanes(builder, builder.add(words, builder.shl(first, I64(2))), 32, lanes)
        old = builder.load(at, align=4)
        even = builder.and_(old, _every(old, -2))
        cycles = builder.shl(builder.zext(even, handles.type), _every(handles, 31))
        others = builder.icmp_unsigned("!=", handles, builder.or_(cycles, _counted(builder, first, lanes)))
        are_live = _none(builder, builder.or_(others, builder.icmp_unsigned("==", old, even)))
        with builder.if_then(are_live, likely=True):
            builder.store(builder.add(old, _every(old, 1)), at, align=4)
        return are_live

    return types.boolean(types.int64, types.int64, types.int64, n), emit


@literal_intrinsic
def is_row(typing: Any, at: Any, n: Any) -> Any:
    """Whether the n slots (u4) at an address are in a row, the lowest last: uppermost in a magazine."""
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slots = builder.load(_lanes(builder, args[0], 32, lanes), align=4)
        highest, lowest = (builder.extract_element(slots, I32(lane)) for lane in (0, lanes - 1))
        row = _none(builder, builder.icmp_unsigned("!=", slots, _counted(builder, lowest, lanes, -1)))
        return builder.and_(row, builder.icmp_unsigned(">", highest, lowest))  # a cache of 2**32 slots has a last one and 0

    return types.boolean(types.int64, n), emit


@intrinsic
def is_run(typing: Any, at: Any) -> Any:
    """Whether the 16 slots (u4) at an address are those of one line of generations, in whatever order."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slots = builder.load(_lanes(builder, args[0], 32, RUN), align=4)
        first = _splat(builder, builder.extract_element(slots, I32(0)), RUN)
        others = builder.and_(builder.xor(slots, first), _every(slots, -RUN))
        bits = builder.shl(_every(slots, 1), builder.and_(slots, _every(slots, RUN - 1)))
        name, shape = f"llvm.vector.reduce.or.v{RUN}i32", ir.FunctionType(I32, [slots.type])
        found = builder.call(cgutils.get_or_insert_function(builder.module, shape, name), [bits])
        all_there = builder.icmp_unsigned("==", found, I32((1 << RUN) - 1))
        return builder.and_(_none(builder, builder.icmp_unsigned("!=", others, _every(slots, 0))), all_there)

    return types.boolean(types.int64), emit


@literal_intrinsic
def store_row(typing: Any, at: Any, first: Any, n: Any) -> Any:
    """Write n slots (u4) in a row from `first` on, the lowest last."""
    lanes = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(_counted(builder, builder.trunc(args[1], I32), lanes, -1), _lanes(builder, args[0], 32, lanes), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, n), emit


# --- Slow paths: out of line, through the table in the control block ---


def _linkonce(builder: Any, name: str, function_type: Any, attributes: tuple[str, ...]) -> tuple[Any, bool]:
    """Return the module's private function of that name, and whether it is new and wants a body."""
    function = builder.module.globals.get(name)
    if function is not None:
        return function, False
    function = ir.Function(builder.module, function_type, name)
    function.linkage = "linkonce_odr"
    for attribute in attributes:
        set.add(function.attributes, attribute)  # some of them llvmlite does not know
    return function, True


def _table_call(builder: Any, control: Any, field: int, values: list[Any]) -> Any:
    """Call the entry point that stands in a field of the control block."""
    at = builder.inttoptr(builder.add(control, I64(field)), I64.as_pointer())
    signature = ir.FunctionType(I64, [I64] * len(values))
    return builder.call(builder.inttoptr(builder.load(at, align=8), signature.as_pointer()), values)


@literal_intrinsic
def slow(typing: Any, heap: Any, field: Any, args: Any) -> Any:
    """
    Call a slow path of the heap: ``entry(heap, *args) -> int64``.

    Never inlined, and it keeps the caller's registers (preserve_mostcc), so that the fast path around it stays short
    enough to be inlined itself: 1.9 ns a pair instead of 4.6.
    """
    if not isinstance(args, types.BaseTuple):
        return None
    offset = field.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        values = [values[0], *cgutils.unpack_tuple(builder, values[2])]
        name = f"jitslab.slow.{offset}.{len(values)}.{SOURCE_HASH}"
        shape = ir.FunctionType(I64, [v.type for v in values])
        thunk, is_new = _linkonce(builder, name, shape, ("noinline", "nounwind", "cold"))
        if is_new:
            thunk.calling_convention = "preserve_mostcc"
            inner = ir.IRBuilder(thunk.append_basic_block())
            numbers = [inner.ptrtoint(thunk.args[0], I64), *thunk.args[1:]]
            control = inner.load(inner.inttoptr(inner.add(numbers[0], I64(H["control"])), I64.as_pointer()), align=8)
            with inner.if_then(inner.icmp_unsigned("==", control, I64(0)), likely=False):
                inner.ret(I64(0))
            inner.ret(_table_call(inner, control, offset, numbers))
        return builder.call(thunk, values, cconv="preserve_mostcc")

    return types.int64(HeapPointer, field, args), emit


@literal_intrinsic
def call_table(typing: Any, control: Any, field: Any, args: Any) -> Any:
    """Call an entry point of the cache: ``entry(control, *args) -> int64``; 0 of a variable that no path has set."""
    if not isinstance(args, types.BaseTuple):
        return None
    offset = field.literal_value

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        answer = cgutils.alloca_once_value(builder, I64(0))
        with builder.if_then(builder.icmp_unsigned("!=", values[0], I64(0)), likely=True):
            found = _table_call(builder, values[0], offset, [values[0], *cgutils.unpack_tuple(builder, values[2])])
            builder.store(found, answer)
        return builder.load(answer)

    return types.int64(types.int64, field, args), emit


HASH_SHIFT = 64 - 8
MIX = -7046029254386353131  # 2**64 / golden ratio, odd: thread pointers differ in their high bits only
assert HEAPS == 1 << 8


@intrinsic
def my_heap(typing: Any, control: Any) -> Any:
    """
    The calling thread's heap of this cache, claimed now if it has none.

    LLVM is told that the answer depends on nothing but the cache, as C tells it of ``__errno_location``: a thread keeps
    its heap, so one call serves a whole function, outside its loops.  The row is one of the heaps, or the shared or
    closed one: always HEAP_BYTES of memory that may be read.  That holds for the zero, too, that Numba gives a variable which
    no path has set: LLVM may call this where the program does not get to.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pure = ("noinline", "nounwind", "readnone", "willreturn", "speculatable")
        thunk, is_new = _linkonce(builder, f"jitslab.my_heap.{SOURCE_HASH}", ir.FunctionType(PTR, [I64]), pure)
        if is_new:
            returned = thunk.return_value
            returned.attributes.dereferenceable = HEAP_BYTES
            returned.attributes.align = 64
            returned.add_attribute("nonnull")
            inner = ir.IRBuilder(thunk.append_basic_block())
            cache = thunk.args[0]
            nothing = cgutils.add_global_variable(builder.module, ir.ArrayType(I64, HEAP_BYTES // 8), "jitslab.no_heap")
            nothing.linkage, nothing.align, nothing.initializer = "internal", 64, nothing.type.pointee(None)
            with inner.if_then(inner.icmp_unsigned("==", cache, I64(0)), likely=False):
                inner.ret(inner.bitcast(nothing, PTR))
            me = inner.ptrtoint(_thread_pointer(inner), I64)
            row = inner.lshr(inner.mul(me, I64(MIX)), I64(HASH_SHIFT))
            heaps = inner.load(inner.inttoptr(inner.add(cache, I64(C["heaps"])), I64.as_pointer()), align=8)
            step = inner.load(inner.inttoptr(inner.add(cache, I64(C["heap_step"])), I64.as_pointer()), align=8)
            heap = inner.inttoptr(inner.add(heaps, inner.mul(row, step)), PTR)
            owner = inner.load_atomic(inner.bitcast(heap, I64.as_pointer()), "monotonic", 8)
            with inner.if_then(inner.icmp_unsigned("==", owner, me), likely=True):
                inner.ret(heap)
            inner.ret(inner.inttoptr(_table_call(inner, cache, C["f_claim"], [cache, me]), PTR))
        return builder.call(thunk, [args[0]])

    return HeapPointer(types.int64), emit


assert H["owner"] == 0


# --- What ends together with a Python object, in one step that no Python stands between ---

_external: Any = types.ExternalFunction
_ptr = types.intp
_PyCapsule_New = _external("PyCapsule_New", _ptr(_ptr, _ptr, _ptr))
_PyCapsule_GetPointer = _external("PyCapsule_GetPointer", _ptr(_ptr, _ptr))
_PyCapsule_GetContext = _external("PyCapsule_GetContext", _ptr(_ptr))
_PyCapsule_SetContext = _external("PyCapsule_SetContext", types.int32(_ptr, _ptr))
_Py_IncRef = _external("Py_IncRef", types.void(_ptr))
_Py_DecRef = _external("Py_DecRef", types.void(_ptr))


@kernel
def end_of(capsule: int) -> int:
    """Call what a capsule's words begin with, and let what it keeps go."""
    kept = _PyCapsule_GetContext(capsule)
    call_table(_PyCapsule_GetPointer(capsule, 0), 0, ())  # before what it keeps goes
    _Py_DecRef(kept)
    return 0


@ObjectEntry
def make_owner(words: int, kept: int) -> int:
    """Return a capsule with an end, for `owner`."""
    capsule = _PyCapsule_New(words, 0, c_function(end_of))
    if capsule != 0:
        _Py_IncRef(kept)
        _PyCapsule_SetContext(capsule, kept)
    return capsule  # type: ignore[no-any-return]  # C functions have no types


def owner(end: Entry, words: Any, *kept: Any) -> Any:
    """
    Return an object whose own end calls an entry point, and only then lets go of what it keeps.

    An exception anywhere, Ctrl-C or a want of memory, finds both done or neither: CPython calls the end itself.

    Parameters
    ----------
    end : Entry
        Called with the address of `words`, under the GIL.
    words : ndarray of int64
        What it works on.  The first word is for the entry point's address.
    kept
        What has to outlast the call.
    """
    words[0] = end.address
    everything = (words, *kept)
    return make_owner(words.ctypes.data, id(everything))

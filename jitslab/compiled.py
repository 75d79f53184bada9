"""
What a cache can do inside `@njit`: an extension type of one int64, the address of its control block.

Above `entry`, below `cache`.  Bodies of overloads are compiled again in every caller, so each is one line that calls a kernel.
Nothing here raises: `prange` would lose the exception and skip iterations.  A refused handle yields a zeroed scratch
record and sets a fault, as floating-point flags do.

`prange` takes getitem, `in` and attributes for pure and moves them out of the loop where their operands do not depend on
it; methods are never moved.  So for a record that iterations share, write ``cache.record(h)`` and ``cache.is_live(h)``.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.core.imputils import RefType, iternext_impl, lower_builtin
from numba.core.typing import templates
from numba.extending import (
    models,
    overload,
    overload_attribute,
    overload_method,
    register_model,
)

from ._native import I64, call_table, copy_bytes, frozen, int64, intrinsic, kernel, load8_relaxed, my_heap, slow, unlikely
from .batch import alloc_few, free_few, next_live, next_record, scan_end, start_scan
from .blocktype import register
from .heap import F_ADDRESS, H_RECORDS, SLOT_MASK, Heap, address, alloc, alloc_filled, free, free_near, is_live
from .layout import BLOCK, LINE, NO_INIT, NULL, SOURCE_HASH, C

F_ALLOC_MANY, F_FREE_MANY, F_LEN, F_CLEAR = (C[name] for name in ("f_alloc_many", "f_free_many", "f_len", "f_clear"))
C_FAULTS, C_CAPACITY = C["faults"], C["capacity"]
int64_pointer = types.EphemeralPointer(types.int64)


class CacheType(types.Type):  # type: ignore[misc]  # numba has no types
    """
    Numba type of the caches of one dtype.

    `record` is the Numba type of the records, or None if Numba cannot type them; `reason` says why.  The name is part of the
    key of the user's own compile caches: it carries the hash of the package's sources.
    """

    def __init__(self, dtype: np.dtype[Any], stride: int, init: int, has_nodes: bool) -> None:
        self.stride, self.init, self.has_nodes, self.itemsize, self.reason = stride, init, has_nodes, dtype.itemsize, ""
        try:
            self.record = numba.from_dtype(dtype)
        except Exception as error:  # numba raises what it likes for a dtype that it cannot type
            self.record, self.reason = None, str(error).splitlines()[0] if str(error) else type(error).__name__
        key = self.record.name if self.record else f"{dtype!r} {dtype.itemsize}"
        short = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:12]
        super().__init__(f"jitslab.SlabCache[{SOURCE_HASH},{stride},{init},{'nodes,' if has_nodes else ''}{short}]")


_types: dict[tuple[np.dtype[Any], int, int, bool], CacheType] = {}


def cache_type(dtype: np.dtype[Any], stride: int, init: int, has_nodes: bool) -> CacheType:
    """Return the type of such caches; one object each."""
    key = dtype, stride, init, has_nodes
    if key not in _types:
        _types[key] = CacheType(dtype, stride, init, has_nodes)
    return _types[key]


register(CacheType, "SlabCache")


# --- What the type knows ---


@intrinsic
def stride_of(typing: Any, cache: Any) -> Any:
    """Bytes from slot to slot, a constant."""
    stride = cache.stride

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return I64(stride)

    return types.int64(cache), emit


@intrinsic
def itemsize_of(typing: Any, cache: Any) -> Any:
    """Bytes of a record, a constant."""
    itemsize = cache.itemsize

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return I64(itemsize)

    return types.int64(cache), emit


@intrinsic
def as_record(typing: Any, cache: Any, at: Any) -> Any:
    """The record at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return cache.record(cache, types.int64), emit


@intrinsic
def record_address(typing: Any, record: Any) -> Any:
    """The address of a record."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return types.int64(record), emit


def need_integer(handle: Any, what: str) -> None:
    """Refuse a handle that is no integer while the user's function is typed."""
    if not isinstance(handle, (types.Integer, types.Boolean)):
        raise NumbaTypeError(f"jitslab: {what} takes an integer handle, got {handle}")


def need_record(cache: CacheType) -> None:
    """Refuse field access to records that Numba cannot type."""
    if cache.record is None:
        raise NumbaTypeError(f"jitslab: Numba cannot type the records of this cache: {cache.reason}")


def need_handles(array: Any, what: str, writable: bool) -> None:
    """Refuse an array that is not of int64 handles, one after the other."""
    fits = isinstance(array, types.Array) and array.dtype == types.int64 and array.ndim == 1 and array.layout == "C"
    if not fits or (writable and not array.mutable):
        kind = "a writable" if writable else "a"
        raise NumbaTypeError(f"jitslab: {what} takes {kind} contiguous 1-d int64 array, got {array}")


# --- Methods ---


def _plain(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """Have a Numba overload decorator see a function without annotations: it compares them with the lambda's."""

    def decorate(function: Callable[..., Any]) -> Any:
        function.__annotations__.clear()
        return decorator(function)

    return decorate


def method(name: str, **options: Any) -> Callable[..., Any]:
    """Implement a method of the cache."""
    return _plain(overload_method(CacheType, name, jit_options=options))


def attribute(name: str) -> Callable[..., Any]:
    """Implement an attribute of the cache."""
    return _plain(overload_attribute(CacheType, name))


def function(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Implement a function or operator of the cache."""
    return _plain(overload(operation))


@method("alloc")
def SlabCache_alloc(cache: Any) -> Callable[..., Any]:
    """Take a slot: its handle, or NULL when the cache is full."""
    if cache.init != NO_INIT:
        return lambda cache: alloc_filled(cache._ptr, my_heap(cache._ptr), stride_of(cache), itemsize_of(cache))
    return lambda cache: alloc(my_heap(cache._ptr))


@method("free")
def SlabCache_free(cache: Any, handle: Any) -> Callable[..., Any]:
    """Free a record; False if the handle is refused."""
    need_integer(handle, "free(handle)")
    if cache.has_nodes:
        return lambda cache, handle: free_near(cache._ptr, my_heap(cache._ptr), int64(handle))
    return lambda cache, handle: free(my_heap(cache._ptr), int64(handle))


@method("record")
def SlabCache_record(cache: Any, handle: Any) -> Callable[..., Any]:
    """The record of a handle; never moved out of a prange."""
    need_integer(handle, "record(handle)")
    need_record(cache)
    return lambda cache, handle: as_record(cache, address(my_heap(cache._ptr), int64(handle), stride_of(cache)))


@method("is_live")
def SlabCache_is_live(cache: Any, handle: Any) -> Callable[..., Any]:
    """Whether a handle's record is live; never moved out of a prange."""
    need_integer(handle, "is_live(handle)")
    return lambda cache, handle: is_live(my_heap(cache._ptr), int64(handle))


@method("at_slot")
def SlabCache_at_slot(cache: Any, slot: Any) -> Callable[..., Any]:
    """The record at a slot number, unchecked: the slot must be below `slot_limit`."""
    need_integer(slot, "at_slot(slot)")
    need_record(cache)
    return lambda cache, slot: as_record(cache, frozen(my_heap(cache._ptr), H_RECORDS) + int64(slot) * stride_of(cache))


@method("alloc_many", forceinline=True)
def SlabCache_alloc_many(cache: Any, out: Any) -> Callable[..., Any]:
    """Take as many slots as `out` has room for, all or none: how many."""
    need_handles(out, "alloc_many(out)", writable=True)
    if cache.init == NO_INIT:
        return lambda cache, out: alloc_few(cache._ptr, my_heap(cache._ptr), int64(out.ctypes.data), int64(out.size))
    return lambda cache, out: call_table(cache._ptr, F_ALLOC_MANY, (int64(out.ctypes.data), int64(out.size)))


@method("free_many", forceinline=True)
def SlabCache_free_many(cache: Any, handles: Any) -> Callable[..., Any]:
    """Free the valid ones of the handles: how many."""
    need_handles(handles, "free_many(handles)", writable=False)
    zero = int64(0)
    if not cache.has_nodes:
        return lambda cache, handles: free_few(cache._ptr, my_heap(cache._ptr), int64(handles.ctypes.data), int64(handles.size))
    return lambda cache, handles: call_table(cache._ptr, F_FREE_MANY, (int64(handles.ctypes.data), int64(handles.size), zero))


@method("clear")
def SlabCache_clear(cache: Any) -> Callable[..., Any]:
    """Free every live record: how many."""
    return lambda cache: call_table(cache._ptr, F_CLEAR, ())


@function(len)
def SlabCache_len(cache: Any) -> Callable[..., Any] | None:
    """How many records are live."""
    return (lambda cache: call_table(cache._ptr, F_LEN, ())) if isinstance(cache, CacheType) else None


@function(operator.getitem)
def SlabCache_getitem(cache: Any, handle: Any) -> Callable[..., Any] | None:
    """The record of a handle."""
    if not isinstance(cache, CacheType):
        return None
    need_integer(handle, "cache[handle]")
    need_record(cache)
    return lambda cache, handle: as_record(cache, address(my_heap(cache._ptr), int64(handle), stride_of(cache)))


@function(operator.setitem)
def SlabCache_setitem(cache: Any, handle: Any, value: Any) -> Callable[..., Any] | None:
    """Copy a record of the same dtype into the record of a handle."""
    if not isinstance(cache, CacheType):
        return None
    need_integer(handle, "cache[handle] = record")
    need_record(cache)
    if value != cache.record:
        raise NumbaTypeError(f"jitslab: cache[handle] = record takes a record of the cache's dtype, got {value}")
    return lambda cache, handle, value: copy_bytes(
        address(my_heap(cache._ptr), int64(handle), stride_of(cache)), record_address(value), itemsize_of(cache)
    )


@function(operator.contains)
def SlabCache_contains(cache: Any, handle: Any) -> Callable[..., Any] | None:
    """Whether a handle's record is live."""
    if not isinstance(cache, CacheType):
        return None
    need_integer(handle, "handle in cache")
    return lambda cache, handle: is_live(my_heap(cache._ptr), int64(handle))


@attribute("capacity")
def SlabCache_capacity(cache: Any) -> Callable[..., Any]:
    """Records that one thread can always have."""
    return lambda cache: frozen(cache._ptr, C_CAPACITY)


@attribute("slot_limit")
def SlabCache_slot_limit(cache: Any) -> Callable[..., Any]:
    """Slots in use so far; every slot number is below."""
    return lambda cache: scan_end(cache._ptr)


@attribute("faults")
def SlabCache_faults(cache: Any) -> Callable[..., Any]:
    """Faults since the last report."""
    return lambda cache: load8_relaxed(cache._ptr + C_FAULTS, 0)


# --- new() and items(): tuples with a Record cannot be returned from a function, so these are lowered in place ---


@kernel
def alloc_address(heap: Heap, stride: int) -> Any:
    """Return (handle, address of its record); NULL and a scratch record when the cache is full."""
    handle = alloc(heap)
    if unlikely(handle == NULL):
        return handle, slow(heap, F_ADDRESS, (handle,))
    return handle, frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * stride


@kernel
def alloc_filled_address(c: int, heap: Heap, stride: int, itemsize: int) -> Any:
    """As `alloc_address`, the record filled."""
    handle = alloc_filled(c, heap, stride, itemsize)
    if unlikely(handle == NULL):
        return handle, slow(heap, F_ADDRESS, (handle,))
    return handle, frozen(heap, H_RECORDS) + (handle & SLOT_MASK) * stride


class CacheIterType(types.SimpleIteratorType):  # type: ignore[misc]  # numba has no types
    """Iterator over the handles of the live records, or over (handle, record)."""

    def __init__(self, cache: CacheType, with_records: bool) -> None:
        self.cache, self.with_records = cache, with_records
        yields = types.Tuple((types.int64, cache.record)) if with_records else types.int64
        super().__init__(f"{'items' if with_records else 'iter'}({cache.name})", yields)


@register_model(CacheIterType)
class _CacheIterModel(models.StructModel):  # type: ignore[misc]  # numba has no types
    def __init__(self, manager: Any, it: CacheIterType) -> None:
        members = [(name, types.int64) for name in ("ptr", "words", "records", "end")]
        members += [(name, int64_pointer) for name in ("base", "mask", "after", "ahead")]
        super().__init__(manager, it, members)


@templates.infer_getattr
class _CacheAttributes(templates.AttributeTemplate):  # type: ignore[misc]  # numba has no types
    key = CacheType

    @templates.bound_function("jitslab.SlabCache.new")
    def resolve_new(self, cache: CacheType, args: Any, kws: Any) -> Any:
        need_record(cache)
        return templates.signature(types.Tuple((types.int64, cache.record)), recvr=cache)

    @templates.bound_function("jitslab.SlabCache.items")
    def resolve_items(self, cache: CacheType, args: Any, kws: Any) -> Any:
        need_record(cache)
        return templates.signature(CacheIterType(cache, True), recvr=cache)


@templates.infer
class _CacheGetIter(templates.AbstractTemplate):  # type: ignore[misc]  # numba has no types
    key = "getiter"

    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], CacheType):
            return templates.signature(CacheIterType(args[0], False), args[0])
        return None


def _pointer_of(context: Any, builder: Any, cache: CacheType, value: Any) -> Any:
    """int64 address of the control block of a lowered cache."""
    return cgutils.create_struct_proxy(cache)(context, builder, value=value).ptr


def _as_item(context: Any, builder: Any, cache: CacheType, handle: Any, at: Any) -> Any:
    """(handle, record) of a handle and an address."""
    record = builder.inttoptr(at, context.get_value_type(cache.record))
    return context.make_tuple(builder, types.Tuple((types.int64, cache.record)), [handle, record])


@lower_builtin("jitslab.SlabCache.new", CacheType)
def lower_new(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Lower ``handle, record = cache.new()``."""
    cache = sig.args[0]
    values = [_pointer_of(context, builder, cache, args[0]), I64(cache.stride), I64(cache.itemsize)]
    if cache.init != NO_INIT:
        new = lambda c, stride, itemsize: alloc_filled_address(c, my_heap(c), stride, itemsize)  # noqa: E731  # numba wants a function of its own
    else:
        new = lambda c, stride, itemsize: alloc_address(my_heap(c), stride)  # noqa: E731  # likewise
    i = types.int64
    pair = context.compile_internal(builder, new, types.UniTuple(i, 2)(i, i, i), values)
    handle, at = cgutils.unpack_tuple(builder, pair)
    return _as_item(context, builder, cache, handle, at)


def _lower_scan(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Start a scan of the live records."""
    it = cgutils.create_struct_proxy(sig.return_type)(context, builder)
    it.ptr = _pointer_of(context, builder, sig.args[0], args[0])
    i = types.int64
    start = lambda c: start_scan(c)  # noqa: E731  # numba wants a function of its own
    it.end, it.words, it.records, first = cgutils.unpack_tuple(
        builder, context.compile_internal(builder, start, types.UniTuple(i, 4)(i), [it.ptr])
    )
    for name, value in (("base", I64(-BLOCK)), ("mask", I64(0)), ("after", first), ("ahead", I64(0))):
        setattr(it, name, cgutils.alloca_once_value(builder, value))
    return it._getvalue()


lower_builtin("getiter", CacheType)(_lower_scan)
lower_builtin("jitslab.SlabCache.items", CacheType)(_lower_scan)


@lower_builtin("iternext", CacheIterType)
@iternext_impl(RefType.UNTRACKED)
def lower_iternext(context: Any, builder: Any, sig: Any, args: Any, result: Any) -> None:
    """Go on to the next live record."""
    typ = sig.args[0]
    it = cgutils.create_struct_proxy(typ)(context, builder, value=args[0])
    i = types.int64
    state = it.base, it.mask, it.after, it.ahead
    stride = typ.cache.stride
    values = [it.ptr, it.words, it.end, *map(builder.load, state), it.records, I64(stride)]
    if typ.with_records and stride >= LINE:
        step = lambda c, w, end, base, m, after, ahead, r, s: next_record(c, w, end, base, m, after, ahead, r, s)  # noqa: E731  # likewise
    else:  # the CPU sees short records coming: asking for them takes longer
        step = lambda c, w, end, base, m, after, ahead, r, s: next_live(c, w, end, base, m, after, ahead)  # noqa: E731  # likewise
    found = context.compile_internal(builder, step, types.UniTuple(i, 6)(*[i] * len(values)), values)
    *new, handle, is_found = cgutils.unpack_tuple(builder, found)
    is_valid = builder.icmp_signed("!=", is_found, I64(0))
    result.set_valid(is_valid)
    for value, at in zip(new, state, strict=True):
        builder.store(value, at)
    with builder.if_then(is_valid):
        if not typ.with_records:
            result.yield_(handle)
            return
        at = builder.add(it.records, builder.mul(builder.and_(handle, I64(SLOT_MASK)), I64(stride)))
        result.yield_(_as_item(context, builder, typ.cache, handle, at))

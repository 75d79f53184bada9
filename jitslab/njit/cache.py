"""
A cache inside `@njit`: an extension type of one int64, the address of its first CONTROL row.

Nothing here raises: `prange` would lose the exception and skip iterations.  A refused handle yields a zeroed scratch record and
sets a fault, as floating-point flags do.

`prange` takes getitem, `in` and attributes for pure, and moves them out of the loop if their operands do not depend on it.  It
never moves methods.  So for a record that iterations share, write ``cache.record(h)`` and ``cache.is_live(h)``.
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
from numba.core.datamodel import default_manager
from numba.core.errors import NumbaTypeError
from numba.core.imputils import RefType, iternext_impl, lower_builtin
from numba.extending import models, register_model
from numba.np.arrayobj import _empty_nd_impl

from .._validate import dtype_identity
from ..core.batch import alloc_few, free_few
from ..core.calls import call, my_heap, slow
from ..core.heap import address, alloc, alloc_filled, free, free_near, is_live
from ..core.heap_table import count_any
from ..core.layout import LINE, NO_INIT, NULL, SLOT_MASK, WORD_SHIFT, WORD_SLOTS, Control, ControlPointer, Heap, HeapPointer
from ..core.scan import mask_at, next_live, next_record, scan_end
from ..machine.compile import I64, PTR, kernel
from ..machine.disk import SOURCE_HASH
from ..machine.holder import register
from ..machine.memory import copy_bytes, unlikely
from ..machine.pointers import U4S, address_of, load_relaxed
from . import lowering
from .birth import FieldTypes, need_columns, need_fields, prepare, prepare_columns
from .lowering import Pointer, Site

int64_pointer = types.EphemeralPointer(types.int64)
HANDLES = types.Array(types.int64, 1, "C")
POSITION = ("base", "mask", "after", "ahead")  # the fields of an iterator that change; see `scan.next_live`
NEAR = 4096  # most slots whose bits an iterator holds itself: a slab of short records
window = types.EphemeralArray(types.int64, NEAR // WORD_SLOTS)


class TypedFields(FieldTypes):
    """The fields that Numba can type; `in` also finds the hidden ones, so that Numba asks for their types."""

    hidden: dict[str, str]

    def __reduce__(self) -> Any:
        """Be pickled with what it says of the hidden ones."""
        return TypedFields, (dict(self),), {"hidden": self.hidden}

    def __contains__(self, name: object) -> bool:
        """Whether the record has a field of that name."""
        return super().__contains__(name) or name in self.hidden


class PartialRecord(types.Record):  # type: ignore[misc]  # numba has no types
    """The Numba type of a record with fields that Numba cannot type; `hidden` gives their names and the reasons."""

    def __init__(self, of: np.dtype[Any], fields: list[Any], hidden: dict[str, str]) -> None:
        self.of, self.hidden = of, hidden
        super().__init__(fields, of.itemsize, of.isalignedstruct)
        self.fields: TypedFields = TypedFields(self.fields)
        self.fields.hidden = hidden
        assert of.fields is not None
        without = ",".join(f"{name}[{of.fields[name][0]};offset={of.fields[name][1]}]" for name in hidden)
        types.Type.__init__(self, f"{self.name[:-1]};without {without})")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype with all fields: so a record that compiled code returns has them."""
        return self.of

    def typeof(self, key: str) -> Any:
        """Return the type of a field."""
        if key in self.hidden:
            raise NumbaTypeError(f"jitslab: Numba cannot type field {key!r} of these records: {self.hidden[key]}")
        return super().typeof(key)


register_model(PartialRecord)(models.RecordModel)


def typed(dtype: np.dtype[Any]) -> Any:
    """Return the Numba type of a field or a record; if not even one of its fields can be typed, the reason, a str."""
    if dtype.subdtype is not None:
        base = typed(dtype.base)
        if isinstance(base, str):
            return base
        return types.NestedArray(dtype=base, shape=dtype.shape) if hasattr(base, "bitwidth") else f"an array of {dtype.base}"
    if dtype.fields is None or dtype.names is None:
        if not dtype.isnative:  # Numba ignores the byte order of dates
            return dtype.str
        try:
            found = numba.from_dtype(dtype)
            default_manager.lookup(found)  # Numba has a type float16 without values
            return found
        except Exception as error:  # Numba raises all kinds of exceptions for a dtype that it cannot type
            return str(error).splitlines()[0] if str(error) else type(error).__name__
    fields, hidden = [], {}
    for name, (of, offset, *title) in dtype.fields.items():
        found = typed(of)
        if isinstance(found, str):
            hidden[name] = found
        else:
            fields.append((name, {"type": found, "offset": offset, "title": title[0] if title else None}))
    if not hidden:
        record = types.Record(fields, dtype.itemsize, dtype.isalignedstruct)
        record.fields = FieldTypes(record.fields)
        return record
    return PartialRecord(dtype, fields, hidden) if fields else next(iter(hidden.values()))


SHOWN_FIELDS = 6  # in the name of a type


def shown_fields(dtype: np.dtype[Any]) -> str:
    """Return names and types of the fields of a record, cut if they are many: ``value f8, next i8``."""
    names, fields = dtype.names or (), []
    for name in names[:SHOWN_FIELDS]:
        base, shape = dtype[name].base, dtype[name].shape
        kind = f"({shown_fields(base)})" if base.names is not None else base.str.lstrip("<=|")
        shown = name if name.isascii() and name.isprintable() else ascii(name)
        fields.append(f"{shown} {kind}{list(shape) if shape else ''}")
    return ", ".join(fields + ["..."] * (len(names) > SHOWN_FIELDS))


class CacheType(types.IterableType):  # type: ignore[misc]  # numba has no types
    """
    Numba type of the caches of one dtype.

    `record` is the Numba type of the records; None: Numba can type no field, as `reason` says.  The name is part of
    the key of the user's own compile caches: it carries the hash of the package's sources.
    """

    row = ControlPointer

    def __init__(self, dtype: np.dtype[Any], stride: int, init: int, has_nodes: bool) -> None:
        self.stride, self.init, self.has_nodes, self.itemsize = stride, init, has_nodes, dtype.itemsize
        found = typed(dtype)
        self.record: Any = None if isinstance(found, str) else found
        self.reason = found if isinstance(found, str) else ""
        key = self.record.name if self.record else f"{dtype!r} {dtype.itemsize}"
        short = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:12]
        options = f"{SOURCE_HASH},{stride},{init},{'nodes,' if has_nodes else ''}{short}"
        super().__init__(f"SlabCache[{shown_fields(dtype)}; {options}]")

    @property
    def iterator_type(self) -> CacheIterType:
        """The type of an iterator over the handles: by it Numba takes a cache for an iterable."""
        return CacheIterType(self, False)


_types: dict[tuple[Any, ...], CacheType] = {}


def cache_type(dtype: np.dtype[Any], stride: int, init: int, has_nodes: bool) -> CacheType:
    """Return the Numba type of a cache; equal arguments give the same object."""
    key = dtype, dtype_identity(dtype), stride, init, has_nodes
    if key not in _types:
        _types[key] = CacheType(dtype, stride, init, has_nodes)
    return _types[key]


register(CacheType)


# --- Arguments that are refused ---


def need_integer(handle: Any, what: str) -> None:
    """Refuse a handle that is no integer while the user's function is typed."""
    if not isinstance(handle, (types.Integer, types.Boolean)):
        raise NumbaTypeError(f"jitslab: {what} takes an integer handle, got {handle}")


def need_record(cache: CacheType) -> None:
    """Refuse field access to records that Numba cannot type."""
    if cache.record is None:
        raise NumbaTypeError(f"jitslab: Numba cannot type the records of this cache: {cache.reason}")


def need_values(cache: CacheType, fields: dict[str, Any]) -> None:
    """Refuse what records cannot be born with."""
    if fields:
        need_record(cache)
        need_fields(cache.record, fields)


def need_handles(array: Any, what: str, writable: bool) -> None:
    """Refuse an array that is not of int64 handles, one after the other."""
    fits = isinstance(array, types.Array) and array.dtype == types.int64 and array.ndim == 1 and array.layout == "C"
    if not fits or (writable and not array.mutable):
        kind = "a writable" if writable else "a"
        raise NumbaTypeError(f"jitslab: {what} takes {kind} contiguous 1-d int64 array, got {array}")


# --- Calls ---


def method(name: str) -> Callable[..., Any]:
    """Describe a method of the cache."""
    return lowering.method(CacheType, name)


def attribute(name: str) -> Callable[..., Any]:
    """Describe an attribute of the cache."""
    return lowering.attribute(CacheType, name)


def function(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Describe a function or operator of the cache."""
    return lowering.function(CacheType, operation)


def stride_of(cache: CacheType) -> Any:
    """Return the bytes from slot to slot, a constant."""
    return I64(cache.stride)


def array_of(site: Site, of: Any, value: Any) -> tuple[Any, Any]:
    """Emit the address and the size of a lowered array."""
    array = site.context.make_array(of)(site.context, site.builder, value)
    return site.builder.ptrtoint(array.data, I64), array.nitems


def emit_new_array(site: Site, control: Pointer, n: Any, take: Callable[..., Any]) -> Any:
    """Emit a new array of n handles that `take` fills, or of none; for more than the capacity no memory is asked for."""
    builder, capacity = site.builder, site.field(control, "capacity")
    fits = builder.and_(builder.icmp_signed(">", n, I64(0)), builder.icmp_signed("<=", n, capacity))
    array = _empty_nd_impl(site.context, builder, HANDLES, [builder.select(fits, n, I64(0))])
    got = take(site, control, builder.ptrtoint(array.data, I64), array.nitems)
    array.nitems, array.shape = got, cgutils.pack_array(builder, [got])
    return array._getvalue()


def heap_of(site: Site, control: Pointer) -> Pointer:
    """Emit the look-up of the calling thread's heap."""
    found: Pointer = site.emit(my_heap, control)
    return found


def emit_entry(site: Site, control: Pointer, name: str, *values: Any) -> Any:
    """Emit the call of an entry point of a cache."""
    return site.entry(call, control, name, *values)


def emit_address(site: Site, cache: CacheType, control: Pointer, handle: Any) -> Any:
    """Emit the checked look-up of a record."""
    return site.call(address, heap_of(site, control), handle, stride_of(cache))


def emit_slot(site: Site, cache: CacheType, control: Pointer, slot: Any) -> Any:
    """Emit the address of the record at a slot, unchecked."""
    records = site.field(heap_of(site, control), "records")
    return site.builder.add(records, site.builder.mul(slot, stride_of(cache)))


@method("alloc")
def SlabCache_alloc(cache: CacheType, /, **fields: Any) -> Any:
    """Take a slot, its record born with fields; returns its handle, or NULL if the cache is full: then nothing is written."""
    need_values(cache, fields)

    def lower(site: Site, control: Any, values: Any = ()) -> Any:
        stores = prepare(site, cache.record, values) if values else []
        if cache.init != NO_INIT:
            handle = site.call(alloc_filled, control, heap_of(site, control), stride_of(cache), I64(cache.itemsize))
        else:
            handle = site.call(alloc, heap_of(site, control))
        if stores:
            with site.builder.if_then(site.builder.icmp_signed("!=", handle, I64(NULL)), likely=True):
                at = emit_slot(site, cache, control, site.builder.and_(handle, I64(SLOT_MASK)))
                for store in stores:
                    store(at)
        return handle

    return types.int64, lower


@method("free")
def SlabCache_free(cache: CacheType, handle: Any) -> Any:
    """Free a record; returns False if the handle is refused."""
    need_integer(handle, "free(handle)")

    def lower(site: Site, control: Any, handle: Any) -> Any:
        return (
            site.call(free_near, control, heap_of(site, control), handle)
            if cache.has_nodes
            else site.call(free, heap_of(site, control), handle)
        )

    return types.boolean, lower


@method("record")
def SlabCache_record(cache: CacheType, handle: Any) -> Any:
    """Return the record of a handle; never moved out of a prange."""
    need_integer(handle, "record(handle)")
    need_record(cache)
    return cache.record, lambda site, control, handle: site.record(cache.record, emit_address(site, cache, control, handle))


@method("is_live")
def SlabCache_is_live(cache: CacheType, handle: Any) -> Any:
    """Return whether a handle's record is live; never moved out of a prange."""
    need_integer(handle, "is_live(handle)")
    return types.boolean, lambda site, control, handle: site.call(is_live, heap_of(site, control), handle)


@method("at_slot")
def SlabCache_at_slot(cache: CacheType, slot: Any) -> Any:
    """Return the record at a slot number, unchecked: the slot must be below `slot_limit`."""
    need_integer(slot, "at_slot(slot)")
    need_record(cache)

    return cache.record, lambda site, control, slot: site.record(cache.record, emit_slot(site, cache, control, slot))


@method("alloc_many")
def SlabCache_alloc_many(cache: CacheType, /, out: Any, **fields: Any) -> Any:
    """
    Take as many slots as `out` has room for, all or none, the records born with fields; returns how many.

    For a number, returns an array of so many handles, empty if there is no room.
    """
    if fields:
        need_record(cache)
        need_columns(cache.record, fields)

    def take(site: Site, control: Any, data: Any, size: Any, values: Any) -> Any:
        stores = prepare_columns(site, cache.record, values, size) if values else []
        if cache.init == NO_INIT:
            taken = site.call(alloc_few, control, heap_of(site, control), data, size)
        else:
            taken = emit_entry(site, control, "alloc_many", data, size)
        if stores:
            with cgutils.for_range(site.builder, taken) as loop:
                place = site.builder.add(data, site.builder.shl(loop.index, I64(3)))
                handle = site.builder.load(site.builder.inttoptr(place, I64.as_pointer()))
                at = emit_slot(site, cache, control, site.builder.and_(handle, I64(SLOT_MASK)))
                for store in stores:
                    store(at, loop.index)
        return taken

    def make(site: Site, control: Any, n: Any, values: Any = ()) -> Any:
        return emit_new_array(site, control, n, lambda site, control, data, size: take(site, control, data, size, values))

    def fill(site: Site, control: Any, array: Any, values: Any = ()) -> Any:
        return take(site, control, *array_of(site, out, array), values)

    if isinstance(out, types.Integer):
        return HANDLES, make
    need_handles(out, "alloc_many(out)", writable=True)
    return types.int64, fill


@method("free_many")
def SlabCache_free_many(cache: CacheType, handles: Any) -> Any:
    """Free the valid ones of the handles; returns how many."""
    need_handles(handles, "free_many(handles)", writable=False)

    def lower(site: Site, control: Any, array: Any) -> Any:
        data, size = array_of(site, handles, array)
        if not cache.has_nodes:
            return site.call(free_few, control, heap_of(site, control), data, size)
        return emit_entry(site, control, "free_many", data, size, I64(0))

    return types.int64, lower


@method("clear")
def SlabCache_clear(cache: CacheType) -> Any:
    """Free every live record; returns how many."""
    return types.int64, lambda site, control: emit_entry(site, control, "clear")


@method("flush")
def SlabCache_flush(cache: CacheType) -> Any:
    """Flush the free slots in the calling thread's magazine; returns how many."""
    return types.int64, lambda site, control: emit_entry(site, control, "flush_own")


@function(len)
def SlabCache_len(cache: CacheType) -> Any:
    """Return how many records are live."""

    def lower(site: Site, control: Any) -> Any:
        if cache.has_nodes:
            return emit_entry(site, control, "count")
        return site.call(count_any, control, heap_of(site, control))

    return types.int64, lower


@function(bool)
def SlabCache_bool(cache: CacheType) -> Any:
    """Return whether the cache is open."""
    return types.boolean, lambda site, control: site.call(is_open, control)


@function(operator.not_)
def SlabCache_not(cache: CacheType) -> Any:
    """Return whether the cache is closed."""
    return types.boolean, lambda site, control: site.builder.not_(site.call(is_open, control))


@kernel
def is_open(control: Control) -> Any:
    """Return whether a cache is open; one that no path has set is not."""
    return address_of(control) != 0 and load_relaxed(control, "closed") == 0


@function(operator.getitem)
def SlabCache_getitem(cache: CacheType, handle: Any) -> Any:
    """Return the record of a handle."""
    need_integer(handle, "cache[handle]")
    need_record(cache)
    return cache.record, lambda site, control, handle: site.record(cache.record, emit_address(site, cache, control, handle))


@function(operator.setitem)
def SlabCache_setitem(cache: CacheType, handle: Any, value: Any) -> Any:
    """Copy a record of the same dtype into the record of a handle."""
    need_integer(handle, "cache[handle] = record")
    need_record(cache)
    if value != cache.record:
        raise NumbaTypeError(f"jitslab: cache[handle] = record takes a record of the cache's dtype, got {value}")

    def lower(site: Site, control: Any, handle: Any, record: Any) -> None:
        to, source = emit_address(site, cache, control, handle), site.builder.ptrtoint(record, I64)
        site.emit(copy_bytes, to, source, I64(cache.itemsize))

    return types.void, lower


@function(operator.contains)
def SlabCache_contains(cache: CacheType, handle: Any) -> Any:
    """Return whether a handle's record is live."""
    need_integer(handle, "handle in cache")
    return types.boolean, lambda site, control, handle: site.call(is_live, heap_of(site, control), handle)


@attribute("capacity")
def SlabCache_capacity(cache: CacheType) -> Any:
    """Return how many records one thread can always have."""
    return types.int64, lambda site, control: site.field(control, "capacity")


@attribute("slot_limit")
def SlabCache_slot_limit(cache: CacheType) -> Any:
    """Return the number of slots used so far; every slot number is below it."""
    return types.int64, lambda site, control: site.call(scan_end, control)


@attribute("faults")
def SlabCache_faults(cache: CacheType) -> Any:
    """Return the number of faults since the last report."""
    return types.int64, lambda site, control: site.emit(load_relaxed, control, "faults")


# --- new() and iteration ---


@kernel
def alloc_address(heap: Heap, stride: int) -> Any:
    """Return (handle, address of its record); NULL and a scratch record if the cache is full."""
    handle = alloc(heap)
    if unlikely(handle == NULL):
        return handle, slow(heap, "address", (handle,))
    return handle, heap.records + (handle & SLOT_MASK) * stride


@kernel
def alloc_filled_address(control: Control, heap: Heap, stride: int, itemsize: int) -> Any:
    """As `alloc_address`, but the record is a copy of the template."""
    handle = alloc_filled(control, heap, stride, itemsize)
    if unlikely(handle == NULL):
        return handle, slow(heap, "address", (handle,))
    return handle, heap.records + (handle & SLOT_MASK) * stride


def as_item(site: Site, cache: CacheType, handle: Any, at: Any) -> Any:
    """Emit the tuple (handle, record) of a handle and an address."""
    record = site.record(cache.record, at)
    return site.context.make_tuple(site.builder, types.Tuple((types.int64, cache.record)), [handle, record])


@method("new")
def SlabCache_new(cache: CacheType, /, **fields: Any) -> Any:
    """Take a slot, its record born with fields; returns its handle and its record, or NULL and a scratch record if it is full."""
    need_record(cache)
    need_values(cache, fields)

    def lower(site: Site, control: Any, values: Any = ()) -> Any:
        stores = prepare(site, cache.record, values) if values else []
        if cache.init != NO_INIT:
            pair = site.call(alloc_filled_address, control, heap_of(site, control), stride_of(cache), I64(cache.itemsize))
        else:
            pair = site.call(alloc_address, heap_of(site, control), stride_of(cache))
        handle, at = cgutils.unpack_tuple(site.builder, pair)
        for store in stores:
            store(at)
        return as_item(site, cache, handle, at)

    return types.Tuple((types.int64, cache.record)), lower


class CacheIterType(types.SimpleIteratorType):  # type: ignore[misc]  # numba has no types
    """Numba type of an iterator over the handles of the live records, or over (handle, record)."""

    def __init__(self, cache: CacheType, with_records: bool) -> None:
        self.cache, self.with_records = cache, with_records
        yields = types.Tuple((types.int64, cache.record)) if with_records else types.int64
        super().__init__(f"{'items' if with_records else 'iter'}({cache.name})", yields)


@register_model(CacheIterType)
class _CacheIterModel(models.StructModel):  # type: ignore[misc]  # numba has no types
    """The bits of the slots to visit are in `window`, or, if there are more than NEAR, in memory of Numba's at `far`."""

    def __init__(self, manager: Any, it: CacheIterType) -> None:
        members = [(name, types.int64) for name in ("records", "end", "far", "all")]
        members += [("control", ControlPointer), ("generations", U4S)]
        members += [("memory", types.MemInfoPointer(types.voidptr)), ("window", window)]
        members += [(name, int64_pointer) for name in POSITION]
        super().__init__(manager, it, members)

    def as_return(self, builder: Any, value: Any) -> Any:
        raise NumbaTypeError("jitslab: an iterator over a cache lives in the function that made it, and cannot be returned")


def noted_by(site: Site, it: Any) -> Any:
    """Return the address of the bits that `note_live` set when the scan started."""
    near = site.builder.ptrtoint(it.window, I64)
    return site.builder.select(site.builder.icmp_unsigned("==", it.far, I64(0)), near, it.far)


def start(site: Site, iterator: CacheIterType, control: Any) -> Any:
    """Start a scan of the records that are live now; without memory for their bits, of those that are live at their turn."""
    context, builder = site.context, site.builder
    it = cgutils.create_struct_proxy(iterator)(context, builder)
    generations = site.field(control, "generations")
    it.control, it.generations = control.value, generations.value
    it.end, it.records = site.call(scan_end, control), site.field(control, "records")
    it.window = cgutils.alloca_once(builder, I64, size=window.count)
    is_small = builder.icmp_signed("<=", it.end, I64(NEAR))
    memory, far = cgutils.alloca_once_value(builder, cgutils.get_null_value(PTR)), cgutils.alloca_once_value(builder, I64(0))
    if context.enable_nrt:
        with builder.if_then(builder.not_(is_small), likely=False):
            size = builder.add(builder.lshr(it.end, I64(WORD_SHIFT - 3)), I64(8))
            got = context.nrt.meminfo_alloc_unchecked(builder, size)
            with builder.if_then(cgutils.is_not_null(builder, got)):
                builder.store(got, memory)
                builder.store(builder.ptrtoint(context.nrt.meminfo_data(builder, got), I64), far)
    it.memory, it.far = builder.load(memory), builder.load(far)
    can_note = builder.or_(is_small, builder.icmp_unsigned("!=", it.far, I64(0)))
    it.all = builder.sext(can_note, I64)
    builder.store(I64(-1), it.window)
    noted = noted_by(site, it)
    emit_entry(site, control, "note_live", noted, builder.and_(it.end, it.all))
    first = site.call(mask_at, generations, noted, it.all, it.end, I64(0))
    for name, value in zip(POSITION, (I64(-WORD_SLOTS), I64(0), first, I64(0)), strict=True):
        setattr(it, name, cgutils.alloca_once_value(builder, value))
    return it._getvalue()


@method("items")
def SlabCache_items(cache: CacheType) -> Any:
    """Iterate over (handle, record)."""
    need_record(cache)
    iterator = CacheIterType(cache, True)
    return iterator, lambda site, control: start(site, iterator, control)


@lower_builtin("getiter", CacheType)
def lower_getiter(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Iterate over the handles."""
    site = Site(context, builder)
    return start(site, sig.return_type, lowering.row_of(site, sig.args[0], args[0]))


@lower_builtin("iternext", CacheIterType)
@iternext_impl(RefType.UNTRACKED)
def lower_iternext(context: Any, builder: Any, sig: Any, args: Any, result: Any) -> None:
    """Go on to the next live record."""
    typ, site = sig.args[0], Site(context, builder)
    it = cgutils.create_struct_proxy(typ)(context, builder, value=args[0])
    state = [getattr(it, name) for name in POSITION]
    pointers = Pointer(ControlPointer, it.control), Pointer(U4S, it.generations)
    values = [*pointers, noted_by(site, it), it.all, it.end, *map(builder.load, state)]
    if typ.with_records and typ.cache.stride >= LINE:
        found = site.call(next_record, *values, it.records, stride_of(typ.cache))
    else:  # the CPU prefetches short records itself: a prefetch would cost more
        found = site.call(next_live, *values)
    *new, handle, is_found = cgutils.unpack_tuple(builder, found)
    is_valid = builder.icmp_signed("!=", is_found, I64(0))
    result.set_valid(is_valid)
    for value, at in zip(new, state, strict=True):
        builder.store(value, at)
    with builder.if_then(is_valid):
        if not typ.with_records:
            result.yield_(handle)
            return
        at = builder.add(it.records, builder.mul(builder.and_(handle, I64(SLOT_MASK)), stride_of(typ.cache)))
        result.yield_(as_item(site, typ.cache, handle, at))


# --- Ahead of time ---


def warm() -> None:
    """Compile the kernels that user code calls, or read them from the disk cache."""
    i, heap = types.int64, HeapPointer
    for kernel_, arguments in (
        (alloc, (heap,)),
        (free, (heap, i)),
        (address, (heap, i, i)),
        (alloc_address, (heap, i)),
        (is_live, (heap, i)),
        (next_live, (ControlPointer, U4S, *[i] * 7)),
        (scan_end, (ControlPointer,)),
        (mask_at, (U4S, *[i] * 4)),
    ):
        dispatcher: Any = kernel_
        dispatcher.compile(arguments)
        dispatcher.overloads[arguments].library._get_module_for_linking()  # linking keeps the kernel on disk

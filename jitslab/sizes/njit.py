"""
`SizeClasses` inside `@njit`: an extension type of one int64, the address of its SIZES row.

Nothing here raises (`njit.cache` is the same for caches).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.errors import NumbaTypeError
from numba.np.arrayobj import populate_array

from ..core.calls import call
from ..machine.compile import I64, int64, intrinsic, kernel
from ..machine.disk import SOURCE_HASH
from ..machine.holder import register
from ..njit import lowering
from ..njit.lowering import Pointer, Site
from . import kernels as raw
from .layout import SizesPointer


class SizeClassesType(types.Type):  # type: ignore[misc]  # numba has no types
    """Numba type of all allocators by size; its name carries the hash of the package's sources."""

    row = SizesPointer

    def __init__(self) -> None:
        super().__init__(f"jitslab.SizeClasses[{SOURCE_HASH}]")


size_classes_type = SizeClassesType()

BYTES = types.Array(types.uint8, 1, "C")


register(SizeClassesType)


@intrinsic
def bytes_at(typing: Any, address: Any, n: Any) -> Any:
    """Return the n bytes at an address, as an array that owns nothing."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(BYTES)(context, builder)
        data = builder.inttoptr(args[0], array.data.type)
        populate_array(array, data, [args[1]], [context.get_constant(types.intp, 1)], I64(1), None)
        return array._getvalue()

    return BYTES(types.int64, types.int64), emit


@kernel
def raw_bytes(at: int, size: int) -> Any:
    """Return the bytes at an address; an empty array if the address is 0."""
    return bytes_at(at, size if at != 0 and size > 0 else int64(0))


def need_integers(what: str, *values: Any) -> None:
    """Refuse arguments that are no integers while the user's function is typed."""
    for value in values:
        if not isinstance(value, (types.Integer, types.Boolean)):
            raise NumbaTypeError(f"jitslab: {what} takes integers, got {value}")


def method(name: str) -> Callable[..., Any]:
    """Describe a method of the allocator."""
    return lowering.method(SizeClassesType, name)


def emit_lean(site: Site, kernel: Any, sizes: Pointer, *values: Any) -> Any:
    """Emit a lean call."""
    return site.emit(kernel, site.builder.ptrtoint(sizes.value, I64), *values)


@method("allocate")
def SizeClasses_allocate(alloc: Any, size: Any) -> Any:
    """Take memory of a size; returns its ptr, or NULL."""
    need_integers("allocate(size)", size)
    return types.int64, lambda site, s, size: site.builder.extract_value(emit_lean(site, raw.allocate_at, s, size), 0)


@method("new")
def SizeClasses_new(alloc: Any, size: Any) -> Any:
    """Take memory of a size; returns (ptr, address), which saves a look-up, or (NULL, 0)."""
    need_integers("new(size)", size)
    return types.UniTuple(types.int64, 2), lambda site, s, size: emit_lean(site, raw.allocate_at, s, size)


@method("free")
def SizeClasses_free(alloc: Any, ptr: Any, size: Any) -> Any:
    """Free memory; returns False if the ptr is refused."""
    need_integers("free(ptr, size)", ptr, size)
    return types.boolean, lambda site, s, ptr, size: emit_lean(site, raw.release, s, ptr, size)


@method("realloc")
def SizeClasses_realloc(alloc: Any, ptr: Any, old_size: Any, new_size: Any) -> Any:
    """Change the size; returns the ptr from now on, or NULL, and nothing changed."""
    need_integers("realloc(ptr, old_size, new_size)", ptr, old_size, new_size)
    return types.int64, lambda site, s, ptr, old_size, new_size: site.entry(call, s, "realloc", ptr, old_size, new_size)


@method("address")
def SizeClasses_address(alloc: Any, ptr: Any, size: Any) -> Any:
    """Return the address of live memory, 0 if the ptr is refused."""
    need_integers("address(ptr, size)", ptr, size)
    return types.int64, lambda site, s, ptr, size: emit_lean(site, raw.address, s, ptr, size)


@method("bytes")  # in Numba only an array can have a method `view`
def SizeClasses_bytes(alloc: Any, ptr: Any, size: Any) -> Any:
    """Return the bytes of live memory; if the ptr is refused, those of zeroed scratch memory, and set a fault."""
    need_integers("bytes(ptr, size)", ptr, size)
    return BYTES, lambda site, s, ptr, size: site.call(
        raw_bytes, site.call(raw.address_or_scratch, site.builder.ptrtoint(s.value, I64), ptr, size), size
    )

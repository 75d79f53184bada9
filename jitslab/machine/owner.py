"""An entry point that runs when a Python object ends; CPython calls it, so no line of Python comes between."""

from __future__ import annotations

from typing import Any

from numba import types

from .compile import Entry, ObjectEntry, c_function, kernel
from .memory import call_at

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
    """Call the entry point of a capsule's row, then drop the objects that the capsule keeps."""
    kept = _PyCapsule_GetContext(capsule)
    call_at(_PyCapsule_GetPointer(capsule, 0), _PyCapsule_GetPointer(capsule, 0))  # before the kept objects are dropped
    _Py_DecRef(kept)
    return 0


@ObjectEntry
def make_owner(row: int, kept: int) -> int:
    """Return a capsule for `owner`."""
    capsule = _PyCapsule_New(row, 0, c_function(end_of))
    if capsule != 0:
        _Py_IncRef(kept)
        _PyCapsule_SetContext(capsule, kept)
    return capsule  # type: ignore[no-any-return]  # C functions have no types


def owner(end: Entry, row: Any, *kept: Any) -> Any:
    """
    Return an object; when it ends, an entry point is called, and after that the kept objects are dropped.

    CPython makes both steps itself.  So an exception (Ctrl-C, no memory) finds both done, or neither.

    Parameters
    ----------
    end : Entry
        Called with the address of `row`, under the GIL.
    row : ndarray of int64
        The row of the entry point.  Its first field is for the entry point's address.
    kept
        Objects that must outlive the call.
    """
    row[0] = end.address
    everything = (row, *kept)
    return make_owner(row.ctypes.data, id(everything))

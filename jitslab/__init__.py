"""
jitslab: a slab allocator for NumPy-dtype records, at about a nanosecond an operation.

A `SlabCache` hands out slots for records of one dtype, from Python and from inside `@njit` and `prange` code; a handle that
is stale, double-freed or another cache's is refused.  Start with `SlabCache`; the design is told in `jitslab.layout`.
"""

from .cache import SlabCache, warmup
from .declare import b1, c8, c16, f2, f4, f8, i1, i2, i4, i8, link, links_of, record, u1, u2, u4, u8
from .errors import (
    ArrayError,
    BusyError,
    CacheFullError,
    CapacityError,
    ClosedError,
    CopyError,
    FaultError,
    FieldError,
    FieldNameError,
    FieldRangeError,
    FieldTypeError,
    ForeignHandleError,
    GuardError,
    HandleError,
    HandleTypeError,
    LawError,
    LayoutError,
    NodeError,
    NullHandleError,
    PlacementWarning,
    SizeError,
    SizeTypeError,
    SlabError,
    StaleHandleError,
    TraceError,
    WrongSizeError,
)
from .guard import SlabObjectGuard, SlabRecordView
from .guard_many import SlabBatchGuard
from .layout import NULL
from .numa import NumaNode, nodes
from .page import SlabNode, SlabObject, SlabPage, SlabState
from .sizes import SizeClasses

__version__ = "0.1.0"

__all__ = [
    "NULL",
    "ArrayError",
    "BusyError",
    "CacheFullError",
    "CapacityError",
    "ClosedError",
    "CopyError",
    "FaultError",
    "FieldError",
    "FieldNameError",
    "FieldRangeError",
    "FieldTypeError",
    "ForeignHandleError",
    "GuardError",
    "HandleError",
    "HandleTypeError",
    "LawError",
    "LayoutError",
    "NodeError",
    "NullHandleError",
    "NumaNode",
    "PlacementWarning",
    "SizeClasses",
    "SizeError",
    "SizeTypeError",
    "SlabBatchGuard",
    "SlabCache",
    "SlabError",
    "SlabNode",
    "SlabObject",
    "SlabObjectGuard",
    "SlabPage",
    "SlabRecordView",
    "SlabState",
    "StaleHandleError",
    "TraceError",
    "WrongSizeError",
    "b1",
    "c8",
    "c16",
    "f2",
    "f4",
    "f8",
    "i1",
    "i2",
    "i4",
    "i8",
    "link",
    "links_of",
    "nodes",
    "record",
    "u1",
    "u2",
    "u4",
    "u8",
    "warmup",
]

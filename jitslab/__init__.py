"""
jitslab: a slab allocator for NumPy-dtype records, at about a nanosecond an operation.

A `SlabCache` hands out slots for records of one dtype, from Python and from inside `@njit` and `prange` code; a handle that
is stale, double-freed or another cache's is refused.  Start with `SlabCache`; the design is told in `jitslab.layout`.
"""

from .cache import SlabCache, warmup
from .errors import (
    ArrayError,
    BusyError,
    CacheFullError,
    CapacityError,
    ClosedError,
    CopyError,
    FaultError,
    ForeignHandleError,
    HandleError,
    HandleTypeError,
    LawError,
    LayoutError,
    NullHandleError,
    SlabError,
    StaleHandleError,
    TraceError,
)
from .layout import NULL
from .page import SlabObject, SlabPage, SlabState

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
    "ForeignHandleError",
    "HandleError",
    "HandleTypeError",
    "LawError",
    "LayoutError",
    "NullHandleError",
    "SlabCache",
    "SlabError",
    "SlabObject",
    "SlabPage",
    "SlabState",
    "StaleHandleError",
    "TraceError",
    "warmup",
]

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
    "ForeignHandleError",
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
    "SlabCache",
    "SlabError",
    "SlabNode",
    "SlabObject",
    "SlabPage",
    "SlabState",
    "StaleHandleError",
    "TraceError",
    "WrongSizeError",
    "nodes",
    "warmup",
]

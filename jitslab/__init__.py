"""
jitslab: a slab allocator for NumPy-dtype records, at about a nanosecond an operation.

A `SlabCache` hands out slots for records of one dtype, from Python and from inside `@njit` and `prange` code; a handle that
is stale, double-freed or another cache's is refused.  Start with `SlabCache`; the design is told in `jitslab.core.layout`.
"""

from types import ModuleType as _ModuleType

from .allocator import SlabAllocator as SlabAllocator, warmup as warmup
from .batch_guard import SlabBatchGuard as SlabBatchGuard
from .cache import SlabCache as SlabCache, load as load
from .core.layout import NULL as NULL
from .declare import (
    b1 as b1,
    c8 as c8,
    c16 as c16,
    f2 as f2,
    f4 as f4,
    f8 as f8,
    i1 as i1,
    i2 as i2,
    i4 as i4,
    i8 as i8,
    record as record,
    u1 as u1,
    u2 as u2,
    u4 as u4,
    u8 as u8,
)
from .errors import (
    ArrayError as ArrayError,
    BusyError as BusyError,
    CacheFullError as CacheFullError,
    CacheTypeError as CacheTypeError,
    CapacityError as CapacityError,
    ClosedError as ClosedError,
    ConflictError as ConflictError,
    CopyError as CopyError,
    CorruptImageError as CorruptImageError,
    CorruptPoolError as CorruptPoolError,
    DuplicateNameError as DuplicateNameError,
    FaultError as FaultError,
    FieldError as FieldError,
    FieldNameError as FieldNameError,
    FieldRangeError as FieldRangeError,
    FieldTextError as FieldTextError,
    FieldTypeError as FieldTypeError,
    ForeignHandleError as ForeignHandleError,
    GuardError as GuardError,
    HandleError as HandleError,
    HandleTypeError as HandleTypeError,
    ImageError as ImageError,
    ImageFullError as ImageFullError,
    ImagePathError as ImagePathError,
    ImageVersionError as ImageVersionError,
    KernelCacheWarning as KernelCacheWarning,
    LawError as LawError,
    LayoutError as LayoutError,
    NodeError as NodeError,
    NullHandleError as NullHandleError,
    OptionError as OptionError,
    PlacementWarning as PlacementWarning,
    PoolBusyError as PoolBusyError,
    PoolError as PoolError,
    PoolFailedError as PoolFailedError,
    PoolFullError as PoolFullError,
    PoolLawError as PoolLawError,
    PoolPathError as PoolPathError,
    PoolVersionError as PoolVersionError,
    ReadOnlyError as ReadOnlyError,
    RecordTypeError as RecordTypeError,
    RetiredError as RetiredError,
    SizeError as SizeError,
    SizeTypeError as SizeTypeError,
    SlabError as SlabError,
    StaleHandleError as StaleHandleError,
    TraceError as TraceError,
    TransactionError as TransactionError,
    UnknownNameError as UnknownNameError,
    WrongSizeError as WrongSizeError,
)
from .guard import SlabObjectGuard as SlabObjectGuard, SlabRecordView as SlabRecordView
from .links import link as link, links_of as links_of, plain as plain
from .machine.numa import NumaNode as NumaNode, nodes as nodes
from .manager import (
    SlabAllocatorManager as SlabAllocatorManager,
    address as address,
    allocate as allocate,
    allocate_object as allocate_object,
    allocate_typed as allocate_typed,
    caches as caches,
    create_object_cache as create_object_cache,
    default_manager as default_manager,
    free as free,
    free_typed as free_typed,
    initialize as initialize,
    realloc as realloc,
    shutdown as shutdown,
    view as view,
)
from .pool.pool import Pool as Pool, open_pool as open_pool
from .pool.repair import check_pool as check_pool, repair_pool as repair_pool
from .ptr import SlabPtr as SlabPtr
from .views import (
    LiveCache as LiveCache,
    LiveReport as LiveReport,
    SlabNode as SlabNode,
    SlabObject as SlabObject,
    SlabPage as SlabPage,
    SlabState as SlabState,
)

__version__ = "0.1.0"

# All that is imported above, by the names of now: modules of the package are attributes of it, too.
__all__ = sorted(name for name, it in globals().items() if not name.startswith("_") and not isinstance(it, _ModuleType))


def __dir__() -> list[str]:
    """List the public names alone."""
    return [*__all__, "__version__"]

"""
The memory of an allocator by size: its block, its rows, the map from sizes to classes, the heaps.

Above `layout`, below `large` and `raw`.  All of it is one range; what follows the block lies at fixed distances, so that no fast
path loads an address that it can compute.

With one array set a class costs nothing until it is first used: its row has no control block, and a plan says how
`opening.open_class` is to make it, in a range of addresses that it reserves then.
"""

from __future__ import annotations

from ..core.layout import HEAP_BYTES, HEAP_ROWS, LINE, PAGE, C, offsets, record
from ..machine.addresses import MASK_BITS, round_up

GRANULE = 8  # bytes: what the map tells apart up to FINE
FINE = 1024  # above, classes are odd numbers of lines, which lie two lines apart
MAX_CLASSES = 256  # rows: a byte of the map names one
NATURAL, MAX_ALIGN = 16, PAGE  # of every class of the fixed table; most that can be asked for
MAX_BYTES = 1 << 46  # most bytes of one allocation
LARGEST = (1 << 20) + LINE  # largest size of a class
CLASS_BYTES, LARGE_BYTES, PLAN_BYTES = 64, 32, 192  # of their rows
PARKED = 8  # pieces of freed large memory that are kept
PARKED_BYTES = 16 << 20  # bytes of them, at most
TAG_BITS = 19  # of a ptr's cycle that stand beside the address of its pages, which has 48 bits at most
TAG_MASK = (1 << TAG_BITS) - 1
PARKED_SHIFT, PARKED_PAGE = 16, 12  # a parked piece is (address >> 12) << 16 | bytes >> 12

CLASS = record(
    # Frozen while the class is used.
    ("base", "i8"),  # what is added to a handle to get a ptr: number of the first slot
    ("stride", "i8"),  # bytes from slot to slot
    ("control", "i8"),  # address of the cache's control block, 0: the class was never used
    ("end", "i8"),  # number after the last slot's
    ("low", "i8"),  # the class serves sizes above this
    ("high", "i8"),  # and up to this
    ("is_aligned", "i8"),  # 1: it serves all sizes that alignments lead to it
    ("pad", "i8"),
)
OWN_BYTES = C["process"]  # what a control block begins with: the fields that are its cache's own
OWN_FIELDS = [(name, "i8") for name in C if C[name] < OWN_BYTES]
PLAN = record(
    # Frozen: how a class is opened.
    ("control", "i8"),  # where its control block is to start, from the border of a page on
    ("words", "i8"),  # where the generations are to, from the same border
    ("least", "i8"),  # slabs that it has at least
    ("interval_end", "i8"),  # ticks at which the first interval of the working set ends
    # Written once, under the registry's lock.
    ("memory", "i8"),  # address of its range, 0: it has none yet
    ("bytes", "i8"),  # of the range
    ("own", OWN_FIELDS),  # of the control block; of the slabs as many as there may be, then as there are
    ("pad", "i8"),
)
SIZES = record(
    ("f_allocate", "i8"),  # entry points of the slow paths
    ("f_free", "i8"),
    ("f_address", "i8"),
    ("f_realloc", "i8"),
    ("f_scratch", "i8"),
    ("f_open", "i8"),
    ("n_rows", "i8"),
    ("large", "i8"),  # address of the control block of the cache of large memory
    ("large_base", "i8"),  # number of its first slot
    ("observe", "i8"),  # 1: sizes are counted
    ("closed", "i8"),
    ("large_bytes", "i8"),  # bytes of pages in large memory, now
    ("mode", "i8"),  # how the pages of large memory are placed, for mbind(2); 0: where they are first written to
    ("mask", "i8", (MASK_BITS // 64,)),  # one bit a node, for that
    ("scratch", "i8"),  # address of the scratch pages of large memory, 0: none yet; their size is their first word
    ("nodes", "i8"),  # most array sets of a class
    ("pad", "i8"),
    ("hand", "i8"),  # where the next place is that is looked at for pages to give up
    ("parked", "i8", (PARKED,)),  # freed pages, 0: none; their number in the low bits, 4 KiB each, above it that of the first
)
LARGE = record(
    ("pages", "i8"),  # their address / 8 << TAG_BITS | low bits of the ptr's cycle; 0 from the instant that a free has taken them
    ("bytes", "i8"),  # of the pages
    ("asked", "i8"),
    ("hold", "i8"),  # number of the array in Python that keeps the pages mapped, with the same low bits; 0: none
)
HELD = record(
    # Of an array in Python that shows large memory, beside it: what its end needs.
    ("end", "i8"),  # address of the entry point that is the end
    ("block", "i8"),  # address of the allocator's block
    ("ptr", "i8"),
    ("number", "i8"),  # of the array
    ("pages", "i8"),  # their address, 0: it does not keep them mapped
    ("bytes", "i8"),  # of the pages
)
S, K, L, P, A = offsets(SIZES), offsets(CLASS), offsets(LARGE), offsets(PLAN), offsets(HELD)

S_N_ROWS, S_LARGE, S_LARGE_BASE, S_OBSERVE, S_CLOSED, S_MODE = (
    S[name] // 8 for name in ("n_rows", "large", "large_base", "observe", "closed", "mode")
)
S_NODES = S["nodes"]
F_ALLOCATE, F_FREE, F_ADDRESS, F_REALLOC, F_SCRATCH, F_OPEN = (
    S[name] for name in ("f_allocate", "f_free", "f_address", "f_realloc", "f_scratch", "f_open")
)
K_BASE, K_STRIDE, K_CONTROL, K_END, K_LOW, K_HIGH, K_ALIGNED = (
    K[name] // 8 for name in ("base", "stride", "control", "end", "low", "high", "is_aligned")
)
P_CONTROL, P_WORDS, P_LEAST, P_INTERVAL_END, P_MEMORY, P_BYTES = (
    P[name] // 8 for name in ("control", "words", "least", "interval_end", "memory", "bytes")
)
AT_OWN = P["own"]
L_PAGES, L_BYTES, L_ASKED, L_HOLD = (L[name] // 8 for name in ("pages", "bytes", "asked", "hold"))
A_BLOCK, A_PTR, A_NUMBER, A_PAGES, A_BYTES = (A[name] // 8 for name in ("block", "ptr", "number", "pages", "bytes"))
AT_HOLD, AT_LARGE_BYTES, AT_MASK, AT_SCRATCH, AT_PARKED, AT_HAND = (
    L["hold"],
    *(S[name] for name in ("large_bytes", "mask", "scratch", "parked", "hand")),
)
MOVING = -1  # number of no array: a realloc has the pages
assert (CLASS.itemsize, LARGE.itemsize, PLAN.itemsize) == (CLASS_BYTES, LARGE_BYTES, PLAN_BYTES)
# What follows the block.
ROWS = SIZES.itemsize  # the CLASS rows
COARSE = (FINE >> 3) + 1 - (FINE >> 7)  # places of the map before those of two lines each
PLACES = 8 * 1024 + 128  # of the map, at least: see `place_of`
ROWS_AT = ROWS + MAX_CLASSES * CLASS_BYTES  # u1 a place: the row of a size
MAP = ROWS_AT + round_up(PLACES, LINE)  # u2 a place: lines from a thread's first heap to the size's; 0 while sizes are counted
COUNTS = MAP + round_up(2 * PLACES, LINE)  # i8 a size: how often it was asked for
PLANS = COUNTS + 8 * (LARGEST + LINE)  # of the classes, by row
SCRATCH = round_up(PLANS + MAX_CLASSES * PLAN_BYTES, PAGE)  # scratch records: a page for each heap, of classes up to that size
LARGER_SCRATCH = SCRATCH + HEAP_ROWS * PAGE  # of larger classes, which share it
HEAPS_AT = round_up(LARGER_SCRATCH + 2 * LARGEST, 64 * 1024)  # the heaps: those of a thread side by side, one a row
HEAP_LINES = HEAP_BYTES // LINE
THREAD_BYTES = MAX_CLASSES * HEAP_BYTES
SIZES_BYTES = HEAPS_AT + HEAP_ROWS * THREAD_BYTES


def place_of(size: int) -> int:
    """Return where the map has a size; 0, where class 0 is, for what is none."""
    if (size >= 0) & (size <= FINE):  # one compare, compiled
        return (size + (GRANULE - 1)) >> 3
    if (size >= 0) & (size <= LARGEST):
        return ((size + (LINE - 1)) >> 7) + COARSE
    return 0


def parked_size(word: int) -> int:
    """Bytes of a parked piece."""
    return (word & ((1 << PARKED_SHIFT) - 1)) << PARKED_PAGE

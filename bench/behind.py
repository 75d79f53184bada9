"""
Why the library is behind where it misses a target: which rows, the reason found, and what was tried to close the gap.

Below `sections`, which puts it beside the figures.  The first line of ROWS that a missed figure matches names its reason; its
patterns are those of `fnmatch`.  A reason says what was found by profiling, and of at least two attempts what each measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

ROWS = (
    # suite, operation, figure, key of the reason
    ("alloc", "churn *", "* / bare stack", "generations"),
    ("alloc", "churn *", "cache / generations", "second check"),
    ("alloc", "* allocs in order", "*", "generations"),
    ("alloc", "* frees in order", "*", "generations"),
    ("alloc", "* allocs + frees, *", "*", "random frees"),
    ("kernels", "cache-*, 1 thread, *", "*", "even"),
    ("kernels", "cache-thrash, *", "*", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "jemalloc / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "tcmalloc* / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "glibc / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "*", "passive sharing"),
    ("kernels", "glibc-simple, *", "*", "checked free"),
    ("kernels", "threadtest, *", "*", "checked free"),
    ("kernels", "xmalloc-test, *", "*", "checked free"),
    ("kernels", "prod-con, *", "*", "remote frees"),
    ("kernels", "geometric mean *", "*", "means"),
    ("kernels", "*", "*", "sized frees"),
    ("replay", "*malloc*", "*", "sized frees"),
    ("replay", "kernel*", "*", "replayed caches"),
    ("memory", "peak, kernel*", "*", "open caches"),
    ("memory", "peak, *malloc*", "*", "size classes"),
    ("numba", "*, first run, *", "*", "compile"),
    ("python", "a record's life*", "*", "python objects"),
    ("python", "add to a field*", "*", "python objects"),
    ("bulk", "bulk *", "*", "bulk copies"),
    ("containers", "get, *", "*", "two lines"),
    ("containers", "remove, *", "*", "two lines"),
    ("containers", "insert, *", "*", "two lines"),
    ("containers", "iterate, *", "*", "iteration"),
    ("start", "fresh process*", "*", "import"),
    ("start", "cold compile*", "*", "compile"),
)


@dataclass(frozen=True)
class Reason:
    """Why, and what each attempt to close the gap measured."""

    why: str
    tried: tuple[str, ...]


REASONS = {
    "generations": Reason(
        "the bare stack moves a slot number and checks nothing. A record of the cache has a generation besides, read and written"
        " by alloc and by free, and the handle is made of both: a load, a compare and a store more on each way.",
        (
            "`new()`, which hands out the record with its handle and leaves out the look-up between them: 9 % less in a churn"
            " of 1,000, which is the second row.",
            "magazines of 128 slots instead of 256 (shorter, nearer): 45 % more on allocs in order; of 512: no gain.",
        ),
    ),
    "second check": Reason(
        "the loop looks its record up by handle after it was made, so a turn compares three generations where the stack made by"
        " hand compares one; while lines of records come from far, the longer turn leaves fewer of them under way at once.",
        (
            "`new()` leaves one of the compares out: 4 to 9 % less than `cache` in the same rows.",
            "keeping the slot and the word of a new handle visible to the compiler, so that the look-up folds into the alloc:"
            " kept; the pair takes as many cycles as it has stores.",
        ),
    ),
    "random frees": Reason(
        "slots that come back in random order are on as many lines of generations as there are slots, and a magazine that is full"
        " gives half of them back to free bits of as many slabs; the bare stack stores them one behind the other, so its pushes"
        " are sequential whatever the order.",
        (
            "asking for the lines of generations and free bits ahead of a batch: kept; it is what `many` has before `each`.",
            "counting a slab once for neighbours that are freed together: kept; in random order there are few.",
        ),
    ),
    "even": Reason(
        "the two sides do the same: most of a turn is thousands of writes of a byte, or the line that both threads write goes to"
        " and fro. What is below 1 is below the spread of the rounds.",
        (
            "more rounds: the sign of the difference changes from run to run.",
            "the median of the rounds in place of the best: kept.",
        ),
    ),
    "passive sharing": Reason(
        "a record that another thread made goes to the magazine of the thread that frees it, which takes it again at once: two"
        " threads that were given neighbours write to one line. tcmalloc, jemalloc and glibc do the same; mimalloc and snmalloc"
        " send a freed object home to the thread whose page it is on, and pay for it elsewhere.",
        (
            "a heap whose records another thread frees pops from several lines of generations in turn: kept; it parts the"
            " generations, not the records, which are of 1 byte here.",
            "whole runs of 16 slots at a refill: kept; threads that take their own records never share a line (cache-thrash).",
        ),
    ),
    "checked free": Reason(
        "a turn of C is a pop and a push of a pointer, unchecked. Ours finds the thread's heap, reads and writes the record's"
        " generation both ways and refuses what is stale; a slot that is taken and freed in order is on 16 lines of"
        " generations more for each 256 records.",
        (
            "`new()` in place of `alloc()` and a look-up: kept.",
            "magazines of 128 and of 512 slots: 45 % more on allocs in order, and no gain.",
        ),
    ),
    "sized frees": Reason(
        "a turn goes from a size to the row of its class, to the thread's heap of the class, whose owner is compared, to the"
        " generation, and to the address; then the free does the same from the ptr, and compares size, class and generation. C"
        " has the address at once, finds the page by masking it, and trusts the caller.",
        (
            "`new(size)`, a ptr with its address: kept; the second look-up between alloc and the first write is gone.",
            "slots of all classes numbered through, so that a wrong class is refused by the compare of the generation that is"
            " made anyway: kept.",
        ),
    ),
    "remote frees": Reason(
        "what one thread takes and the other frees comes back by the slab layer, half a magazine at a time, under its lock;"
        " beside it the consumer checks each handle twice, for the read and for the free.",
        (
            "flushing in runs that are counted once for neighbours: kept.",
            "magazines of 512 slots, half as many holds of the lock: no gain.",
        ),
    ),
    "means": Reason(
        "the mean of the rows above: each has its reason.",
        ("of the loops with sizes, see sized frees.", "of the loops of one size, see checked free and remote frees."),
    ),
    "replayed caches": Reason(
        "the trace changes between some hundred caches from event to event, so that each alloc and free finds the heap of"
        " another cache, on lines of its own, where tcmalloc has one thread cache with classes side by side.",
        (
            "the rows of slabs on the page of their control block: kept; a small cache touches a page less.",
            "events asked for ahead of their turn: no gain, the lines that are missed are those of the heaps.",
        ),
    ),
    "open caches": Reason(
        "each of the kernel's caches is one of ours, with a control block, generations, free bits and slabs of its own, most of"
        " them barely filled; C puts objects of like sizes of all caches side by side.",
        (
            "the rows of slabs on the page of their control block: kept; a page less for each cache.",
            "smaller slabs: more of them, with as many partly filled.",
        ),
    ),
    "size classes": Reason(
        "every class has slabs of its own, 64 KiB and more, and magazines hold up to 256 KiB of free records a class; empty"
        " slabs are kept as a working set before they go back to the system.",
        (
            "`tune`, classes fitted to the sizes of the trace: the peak is the same, so rounding up is not what costs.",
            "releasing empty slabs at once: the peak is reached while they are in use, and stays.",
        ),
    ),
    "compile": Reason(
        "the library is Python that Numba compiles: some seventy kernels, once on a machine, in place of a binary that is"
        " installed; and a user's kernel links the fast paths that it inlines.",
        (
            "slow paths behind a table of functions, so that user code neither links nor optimises them: kept; a user's kernel"
            " compiles in 57 ms instead of 115.",
            "no wrappers for what only kernels call: kept; 20 ms less each.",
        ),
    ),
    "python objects": Reason(
        "an attribute of an object with slots, or of a dict, is a load that the interpreter specialises; ours is a C call that"
        " finds the slot, compares its generation and makes an int of the field.",
        (
            "C methods on the class in place of dispatchers: kept; a pair takes 36 ns instead of 98.",
            "fields by an overlay of ctypes in place of NumPy's record: kept; 20 to 30 ns instead of 240 and more.",
        ),
    ),
    "bulk copies": Reason(
        "rte_mempool copies pointers, several an instruction, and checks nothing: a double put corrupts it. The cache reads and"
        " writes a generation for each record both ways; the stack with generations shows what that costs.",
        (
            "small batches in the caller's code, with the magazine's top in a register: kept.",
            "half a magazine and more by the slab layer, generations by whole vectors: kept.",
        ),
    ),
    "two lines": Reason(
        "where the records fit the CPU's caches: the generation is on another line than the record, so each access touches two."
        " slab and the iterators of C++ have none to check, slotmap keeps it beside the record, which makes the record longer."
        " A free besides flushes its magazine every 128 records.",
        (
            "neighbours that are freed together go back together, counted once: kept; records in random order have few.",
            "asking for the records' lines ahead: the keys are known only to the caller, whose loop the CPU overlaps already.",
        ),
    ),
    "iteration": Reason(
        "live records are found by their generations, one after the other; that costs most where few are live, and colony and"
        " hive jump over what is free.",
        (
            "asking for the records of the next block while those of this one are given out: kept for records longer than a"
            " line; for those of one line it costs more than it saves.",
            "64 generations compared at a time, to a word of bits: kept.",
        ),
    ),
    "import": Reason(
        "a cached function of a user's own takes as long: most is Numba's own first use, not the library's.",
        (
            "modules that a first alloc does not need are imported later: kept.",
            "few kernels on the way to the first alloc, each loaded from the disk: kept; some 1 ms each.",
        ),
    ),
}  # keys are words of links


def key_of(suite: str, operation: str, figure: str) -> str | None:
    """Return the key of the reason that a missed figure has; None if none is known."""
    for of_suite, of_operation, of_figure, key in ROWS:
        if suite == of_suite and fnmatchcase(operation, of_operation) and fnmatchcase(figure, of_figure):
            return key
    return None

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
    ("alloc", "churn *", "cache / generations", "second look-up"),
    ("alloc", "* allocs in order", "*", "generations"),
    ("alloc", "* frees in order", "*", "generations"),
    ("alloc", "* allocs + frees, *", "*", "random frees"),
    ("peers", "each record freed by the other thread, *", "*", "remote frees"),
    ("threads", "*private pairs*", "*", "two quiet cores"),
    ("access", "random *", "*", "two lines"),
    ("access", "iteration, *", "*", "iteration"),
    ("kernels", "cache-*, 1 thread, *", "*", "even"),
    ("kernels", "cache-thrash, *", "*", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "jemalloc / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "tcmalloc* / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "glibc / *", "even"),
    ("kernels", "cache-scratch, 2 threads, *", "*", "passive sharing"),
    ("kernels", "glibc-simple, *", "*", "checked free"),
    ("kernels", "threadtest, *", "*", "checked free"),
    ("kernels", "xmalloc-test, *", "*", "remote frees"),
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
    ("containers", "iterate, *", "*", "iteration"),
    ("containers", "*", "*", "two lines"),
    ("start", "fresh process*", "*", "first use"),
    ("start", "cold compile*", "*", "compile"),
)


@dataclass(frozen=True)
class Reason:
    """Why, and what each attempt to close the gap measured."""

    why: str
    tried: tuple[str, ...]


REASONS = {
    "generations": Reason(
        "the bare stack moves a slot number and checks nothing. A record of the cache has a generation besides, which alloc"
        " and free each read, compare and write, and of which the handle is made.",
        (
            "`new()`, which hands out the record with its handle and leaves out the look-up between them: 9 to 11 % less"
            " than `alloc()` and a look-up in a churn of 1,000; it is the second figure.",
            "magazines of 128 slots in place of 256: 45 % more on allocs in order; of 512: no gain.",
        ),
    ),
    "second look-up": Reason(
        "the loop looks its record up by handle after it was made, so a turn compares three generations where the stack"
        " made by hand compares one. Up to 100,000 records that is all of it: with `new()`, which needs no second look-up, a"
        " turn takes as long as on the stack (0.94 to 1.00). Of 1,000,000, NumPy has asked for huge pages for all arrays of"
        " the stack, which are of 4 MB and more; ours begin beyond the first 4 MiB of records.",
        (
            "`new()` in the same loop: 1.00 of the stack at 1,000 records, beside 1.12.",
            "no huge pages for NumPy (NUMPY_MADVISE_HUGEPAGE=0), 1,000,000 records, three runs: 0.96 to 1.02, beside 1.03"
            " to 1.10.",
            "huge pages from the first record on, in three runs: 0.97 to 1.09; for the generations, too: 1.01 to 1.10. No"
            " gain beyond the scatter: not kept, it would cost a small cache 2 MiB.",
        ),
    ),
    "random frees": Reason(
        "slots that come back in random order have their generations on as many lines, and a full magazine gives half of"
        " its slots back to as many words of free bits, under the lock; the bare stack stores them one behind the other, so"
        " its pushes are sequential whatever the order.",
        (
            "free bits in place of a stack of slot numbers for each slab: kept; 25 to 30 % less on random frees, though 35"
            " to 50 % more on streaming allocs of single slots.",
            "slots of a batch in random order given back one by one, and counted once: kept; it is what `many` has before"
            " `each`.",
        ),
    ),
    "even": Reason(
        "both sides do the same: a turn is thousands of writes of a byte beside one alloc and one free; and where both"
        " threads were given neighbours, tcmalloc, jemalloc, glibc and the cache all hand a thread what it freed itself, so"
        " that the line goes to and fro. What is below 1 is within the quartiles of the rounds.",
        (
            "another run of the same rows: others of them are below 1, by as little.",
            "the median of the rounds in place of the best, as it is luck which thread waits: kept.",
        ),
    ),
    "passive sharing": Reason(
        "a record that another thread took goes to the magazine of the thread that frees it, which takes it again at once:"
        " two threads that were given neighbours write to one line for ever after. tcmalloc, jemalloc and glibc do the same."
        " mimalloc and snmalloc send what is freed home to the thread whose page it is on. The loop is of 1 byte: 64"
        " neighbours on a line.",
        (
            "a heap whose records another thread frees pops from several lines of generations in turn: kept; it parts"
            " generations, not records.",
            "slots leave a slab in whole runs of 16: kept; threads that take their own records share no line (cache-thrash:"
            " even).",
        ),
    ),
    "checked free": Reason(
        "a turn of C is a pop and a push of a pointer, unchecked. Ours reads, compares and writes the generation both ways,"
        " and refuses what is stale; records of 8 bytes have half as much of generations again.",
        (
            "`new()` in place of `alloc()` and a look-up: kept.",
            "magazines of 128 slots: 45 % more on allocs in order; of 512: no gain.",
        ),
    ),
    "sized frees": Reason(
        "a turn goes from a size to the row of its class, to the thread's heap of the class, whose owner is compared, and"
        " to the generation and the address; its free does the same from the ptr, and compares class, size and generation. C"
        " has the address at once, finds its page by masking it, and trusts the caller.",
        (
            "`new(size)`, a ptr with its address: kept; the second look-up between alloc and the first write is gone.",
            "slots of all classes numbered through, so that a ptr of another class is refused by the compare of the"
            " generation, which is made anyway: kept.",
        ),
    ),
    "remote frees": Reason(
        "what one thread takes and the other frees goes back to the slab layer half a magazine at a time, and comes from"
        " there again, each under its lock; snmalloc hands batches from thread to thread by messages, without one.",
        (
            "neighbours that are freed together go back together, counted once: kept.",
            "magazines of 512 slots, half as many holds of the lock: no gain on allocs in order.",
        ),
    ),
    "means": Reason(
        "the mean of the loops above, each of which has its reason: those of varying sizes most of all.",
        (
            "of the loops of varying sizes, see sized frees.",
            "of the loops of one size, see checked free and remote frees.",
        ),
    ),
    "replayed caches": Reason(
        "level, within the scatter: medians of 3.78 ns an event beside 4.02 of tcmalloc with one thread, 3.93 beside 4.19"
        " with two, in 15 s of rounds in turn. Nine in ten events are of 5 of the trace's 31 caches, so the stamps that both"
        " sides write and verify are most of what it takes.",
        (
            "empty slabs kept (`keep_empty`): 0.08 ns less, 2 %.",
            "four times the capacity, or no colour: 0.08 ns less, and nothing.",
        ),
    ),
    "open caches": Reason(
        "each of the kernel's 31 caches is one of ours, with pages of its own for its control block, generations, free bits"
        " and records: 19 KB with one record live, so 0.57 MiB after the first events, where C has 0.08 to 0.23. From there"
        " on the curves run side by side.",
        (
            "the rows of slabs on the page of their control block: kept; a small cache touches a page less.",
            "slabs of 32 KiB in place of 64: 2.84 MiB at the peak in place of 2.82 with one thread, 3.48 in place of 3.52"
            " with two.",
            "magazines of at most 64 KiB of records in place of 256: 2.83 and 3.49 MiB.",
        ),
    ),
    "size classes": Reason(
        "each class is a cache, with pages of its own for its control block, generations, free bits and slabs, of which the"
        " last is partly used; C has one heap, whose pages go from size to size.",
        (
            "`tune`, 36 classes fitted to the sizes of the trace: 4 to 7 % less at the peak, the other figure; with 60"
            " classes 1 to 8 % more, as each has pages of its own.",
            "slabs of 32 KiB in place of 64: 3.23 MiB at the peak of the made trace, beside 3.21.",
            "magazines of at most 64 KiB of records in place of 256: 3.25 MiB.",
        ),
    ),
    "compile": Reason(
        "the library is Python that Numba compiles, once on a machine, in place of a binary that is installed; and a kernel"
        " of a user's links the fast paths that it inlines.",
        (
            "slow paths behind a table of functions, so that user code neither links nor optimises them: kept; a user's"
            " kernel compiles in 57 ms in place of 115.",
            "no wrappers for what only kernels call: kept; 20 ms less each.",
        ),
    ),
    "python objects": Reason(
        "an attribute of an object with slots, or a key of a dict, is a load that the interpreter specialises; ours is a"
        " call of C that finds the slot, compares its generation and makes an int of the field.",
        (
            "C methods on the class in place of compiled functions: kept; a pair takes less than one call of a compiled"
            " function, 98 ns.",
            "fields by an overlay of ctypes in place of NumPy's record: kept; 20 to 30 ns in place of 240.",
        ),
    ),
    "bulk copies": Reason(
        "rte_mempool copies pointers, several an instruction, and checks nothing: a double put corrupts it. The cache reads"
        " and writes a generation for each record both ways; the stack with generations shows what that costs.",
        (
            "small batches in the caller's code, with the magazine's top in a register: kept.",
            "half a magazine and more by the slab layer, in runs whose generations are written as vectors: kept.",
        ),
    ),
    "two lines": Reason(
        "where the records fit the CPU's caches: the generation is on another line than the record, so each access touches"
        " two. slab and the iterators of C++ have none to check; slotmap keeps it beside the record, which makes the record"
        " longer. A free besides gives half of its magazine back every 128 records.",
        (
            "neighbours that are freed together go back together, counted once: kept; records in random order have few.",
            "a batch in random order given back slot by slot, and counted once: kept.",
        ),
    ),
    "iteration": Reason(
        "live records are found by their generations; that costs most where few are live, and colony and hive jump over"
        " what is free.",
        (
            "asking for the records of the next block while those of this one are given out: kept for records longer than a"
            " line; for those of one line it costs more than it saves.",
            "the iterator in place of a loop over handles that looks each record up: kept; the third contender of the rows"
            " of access.",
        ),
    ),
    "first use": Reason(
        "Numba's own first use: a process that loads one cached function of a user's takes 0.20 s more than `import numba`,"
        " ours 0.26, and one that does both 0.26. The import of the library is 0.10 of that, its first cache 0.11.",
        (
            "the garbage collector off while modules are imported: 0.02 s less; not kept, it is the program's to decide.",
            "Python's modules frozen (-X frozen_modules=on): nothing.",
        ),
    ),
    "two quiet cores": Reason(
        "two threads on two cores share them with whatever else runs; the quartiles of the rounds say how far that goes.",
        (
            "the median of what each round gives in place of the best: kept; it is what the figure is.",
            "a heap whose records another thread frees pops from several lines of generations in turn, so that two threads"
            " do not write to one: kept; pairs took two to five times as long where they did.",
        ),
    ),
}  # keys are words of links


def key_of(suite: str, operation: str, figure: str) -> str | None:
    """Return the key of the reason that a missed figure has; None if none is known."""
    for of_suite, of_operation, of_figure, key in ROWS:
        if suite == of_suite and fnmatchcase(operation, of_operation) and fnmatchcase(figure, of_figure):
            return key
    return None

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
    ("peers", "*allocs, each a call, *", "*", "far writes"),
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
        "the bare stack moves a slot number and checks nothing. A record of the cache has a generation besides, which "
        "alloc and free each read, compare and write, and of which the handle is made.",
        (
            "`new()`, which hands out the record with its handle and leaves out the look-up between them: 9 to 11 % less "
            "than `alloc()` and a look-up in a churn of 1,000; it is the second figure.",
            "magazines of 128 slots: 45 % more on allocs in order.",
            "a row of generations checked and changed by vector instructions: kept; `alloc_many` in order 0.85 to 0.70 ns.",
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
    "far writes": Reason(
        "a turn writes to a line that nobody has touched for a million records, 64 MB: the memory's bandwidth is most of it,"
        " for the bare stack, too (14 ns a turn, which is longer than ours). The cache besides writes a generation for each"
        " record and looks it up by its handle: 10.3 to 11.4 ns beside 9.9 to 10.5 of mimalloc.",
        (
            "`new()` in the same loop, which looks nothing up: 10.4 to 11.0 ns.",
            "empty slabs kept (`keep_empty`): 10.1 to 10.8 ns; no colour: 10.8 to 10.9; neither is beyond the scatter.",
            "`alloc_many`, then the writes: 9.2 ns, which is the row of one call.",
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
        "a record that another thread took goes to the magazine of the thread that frees it, which takes it again at "
        "once: two threads that were given neighbours write to one line for ever after. tcmalloc, jemalloc and glibc "
        "do the same. mimalloc and snmalloc send what is freed home to the thread whose page it is on. The loop is of "
        "1 byte: 64 neighbours on a line.",
        (
            "a free that looks whose slab the slot is of, and sends it home: even with mimalloc (1,195 ns beside 1,192), "
            "but 25 to 35 % on every other free of a record below one line (threadtest of 25 records: 1.70 to 2.26 ns): "
            "not kept.",
            "slots leave a slab in whole runs of 16: kept; threads that take their own records share no line "
            "(cache-thrash: even).",
        ),
    ),
    "checked free": Reason(
        "a turn of C is a pop and a push of a pointer, unchecked. Ours reads, compares and writes the generation both "
        "ways, and refuses what is stale; records of 8 bytes have half as much of generations again.",
        (
            "flushes and refills by whole lines of generations: kept; threadtest 3.20 to 2.11 ns a turn.",
            "the parts of the loops compiled into them, on both sides: kept; each free had looked the thread's heap up "
            "anew, 3.7 ns a turn of 25 records in place of 1.6.",
        ),
    ),
    "sized frees": Reason(
        "a turn of C finds its page by masking the address, trusts the caller, and pops and pushes a pointer. Ours "
        "goes from the size by a map to the thread's heap of the class, whose owner is compared, and reads, compares "
        "and writes a generation both ways: two loads more between size and address, which shows where the CPU "
        "guesses sizes wrong (glibc-thread), and a line of generations more where memory is far (alloc-test, larson).",
        (
            "calls that hand over in registers and are compiled into the caller, in place of Numba's own: kept; sh6bench "
            "9.2 to 7.3 ns a turn, beside 4.9 of mimalloc 2.",
            "a thread's heaps of all classes side by side, found by one look into a map of 8 Ki places, all that a turn "
            "needs on one line: kept; larson 0.75 to 0.94 of mimalloc 2, sh8bench 0.67 to 0.91.",
            "flushes and refills by whole lines of generations, magazines of 512 slots: kept; sh6bench 0.77 to 0.91, "
            "sh8bench 0.97 to 1.10.",
            "freed large memory kept for the next piece: kept; 4,180 page faults of a run of mstress became 120, 0.60 of "
            "mimalloc 2 became 0.80 and more.",
            "the generation of the slot that is popped four later asked for ahead: sh8bench by two threads 4.04 ns in "
            "place of 4.03.",
            "the thread's row looked up by a call that LLVM moves out of loops: nothing in these, 1.2 ns more in small "
            "functions: not kept.",
        ),
    ),
    "remote frees": Reason(
        "what one thread takes and the other frees goes back to the slab layer half a magazine at a time, and comes "
        "from there again, each under its lock; snmalloc hands batches from thread to thread by messages, without "
        "one. What the threads of prod-con wait for is each other: their figures scatter by a factor of two from run "
        "to run (0.6 to 1.0 of snmalloc in four others).",
        (
            "magazines of 1,024 slots in place of 512: 5.7 to 3.9 ns a record, level with snmalloc, and xmalloc-test 2.6 "
            "to 2.15; but twice the addresses and writable metadata of every cache: not kept.",
            "a magazine that frees alone have filled flushed whole in place of by half: xmalloc-test 2.6 to 2.15 ns, each "
            "record freed by the other thread 5.7 to 6.3: not kept.",
            "neighbours that are freed together go back together, by whole lines of generations: kept.",
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
        "each of the kernel's 31 caches is one of ours, with pages of its own for its control block and generations, "
        "free bits, heap and records: of 2.84 MiB at the peak 2.43 are records, 0.13 heaps, 0.18 generations and "
        "control blocks, 0.07 Python's. With two threads each has a heap in each.",
        (
            "Python's objects of a cache 2 KB in place of 5.4: kept; 3.00 to 2.93 MiB.",
            "rows of slabs, control block and first generations on one page: kept; 2.93 to 2.84 MiB.",
            "slabs of 32 KiB in place of 64, magazines of at most 64 KiB of records in place of 256: 1 %.",
        ),
    ),
    "size classes": Reason(
        "each class has pages of its own for its control block, generations, free bits and slabs, of which the last "
        "is partly used; C has one heap, whose pages go from size to size. The sum of every class's own maximum, in "
        "whole pages, is 1.96 MiB in the made trace, where 1.34 are live at once.",
        (
            "classes opened when they are first used: kept; 2.88 to 2.54 MiB.",
            "rows of slabs, control block and first generations on one page: kept; 2.54 to 2.42 MiB.",
            "`tune`, 36 classes fitted to the sizes: 4 to 7 % less, which is the row of its own; slabs of 32 KiB in place "
            "of 64: 2 %.",
        ),
    ),
    "compile": Reason(
        "the library is Python that Numba compiles, once on a machine, in place of a binary that is installed: 99 "
        "kernels for a first cache, half of the time LLVM's, half Numba's. A kernel of a user's links and optimises "
        "the fast paths that it inlines.",
        (
            "a method is typed by one function and lowered to the call of a kernel that is on the disk: kept; the linked "
            "list 1.01 to 0.56 s, beside 0.65 of jitclass on the same busy machine; the order book 1.27 to 0.53.",
            "slow paths behind a table of functions, so that user code neither links nor optimises them: kept; a user's "
            "kernel compiles in 57 ms in place of 115.",
            "entry points compiled when they are first called: what code without the GIL may call cannot wait for Python, "
            "so none of a cache's can: not kept.",
        ),
    ),
    "python objects": Reason(
        "an attribute of an object with slots, or a key of a dict, is a load that the interpreter compiles into the "
        "bytecode; ours is a call of C that finds the field, compares the record's generation and makes an int of it. "
        "The guard of a block is besides entered and left, for which Python makes two bound methods: an empty context "
        "manager alone takes 98 ns in that loop.",
        (
            "the handle a number in the guard's memory, and memory of ended guards used again: kept; a record's life 279 "
            "to 166 ns.",
            "all C functions of guards in one piece of machine code, so that they do not push each other out of the CPU's "
            "cache: kept; 166 to 124 ns.",
            "fields found by a table of the class: kept; a field read 31 to 22 ns.",
            "Python's own look-up of attributes in place of the guards': allocate and free 95 to 66 ns, but a missing "
            "field would lose its error text: not kept.",
        ),
    ),
    "bulk copies": Reason(
        "rte_mempool copies pointers, several an instruction, and checks nothing: a double put corrupts it. The cache "
        "reads and writes a generation for each record both ways. Batches of 4 are bound by instructions (45 a call, "
        "7.5 cycles); of 32 kept by 32, slots, generations and handles come back every turn and wait for each other's "
        "stores (0.55 ns, kept by 128 with the same code 0.28); what overflows the magazine costs the slab layer's "
        "lock and bits.",
        (
            "rows of 4, 8 and 16 slots that follow each other are checked and changed by vector instructions in the "
            "caller's code: kept; bulk 32 keep 512 from 1.94 to 0.27 ns a record, bulk 4 from 1.30 to 0.93.",
            "the same out of line: bulk 4 2.58 ns.",
            "magazines of 512 slots, as rte_mempool's cache has: kept; with 256 nothing that keeps 512 stays within.",
            "batches of a quarter of a magazine by the slab layer where the magazine has too few: kept; 128 kept by 2,048 "
            "0.62 to 0.52 ns.",
        ),
    ),
    "two lines": Reason(
        "the generation is on another line than the record, so each access touches two: of 10,000 records among "
        "100,000, 400 KB of generations and 640 KB of records exceed the CPU's second cache of 1 MB, where slab needs "
        "720 KB. slab and the iterators of C++ have nothing to check; slotmap keeps its version beside the record, "
        "which makes the record longer. A free besides gives half of its magazine back every 256 records, 0.9 ns each "
        "in random order.",
        (
            "huge pages for records: get 1.06 to 1.04 ns; for the generations of 1,000,000, too: 3 %.",
            "a flush slot by slot: 2.6 ns a free, with lines asked for ahead 2.9; by masks with lines asked for ahead "
            "2.5, without 2.35: the last is kept.",
        ),
    ),
    "iteration": Reason(
        "live records are found by their generations, 64 at a time; where few of a block are live, where it ends is "
        "guessed wrong once a block, and colony and hive jump over what is free. 42 % of samples wait for the "
        "record's line.",
        (
            "the next block's mask known before it is needed, its records asked for without a branch: kept; 10 % of "
            "1,000,000 live from 0.37 to 0.98 of colony, 10 % of 100,000 from 0.65 to 0.8.",
            "live slots of a block compressed into a buffer by AVX-512: 1.5 to 2.0 ns in place of 1.5.",
            "the same asked for behind a branch: 1.9 to 2.0 ns.",
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

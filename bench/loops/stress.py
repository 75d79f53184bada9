"""
Classic stress loops of allocators, each written once: over C `malloc`, memory by size, a cache of one size (see `heaps`).

Each loop returns how many frees were right: accepted and, if it is *careful*, with the stamp still in the first and the last
bytes.  Sizes are kept beside the refs: a checked free asks for them, C does without.
"""

from __future__ import annotations

import platform
from functools import partial

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loops import malloc as c
from loops.heaps import at, give, part, take
from loops.ring import HEAD, TAIL, publish, published, sched_yield

njit = partial(numba.njit, cache=True, nogil=True)
I8, I64 = ir.IntType(8), ir.IntType(64)
LAP = 64  # turns between two looks at the clock
SPAN = 1 << 31  # of `bits`


# --- Bytes, the clock, chance ---


@intrinsic
def store_byte(typing, address, value):
    """Store the low byte of a value, each time: never left out by LLVM."""

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I8.as_pointer())
        builder.store_atomic(builder.trunc(args[1], I8), pointer, "monotonic", 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def load_byte(typing, address):
    """Load a byte, each time."""

    def emit(context, builder, signature, args):
        return builder.zext(builder.load_atomic(builder.inttoptr(args[0], I8.as_pointer()), "monotonic", 1), I64)

    return types.int64(types.int64), emit


@intrinsic
def store_after(typing, address, value):
    """Store an int64, after everything stored before it."""

    def emit(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def load_before(typing, address):
    """Load an int64, before everything loaded after it."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def exchange(typing, array, index, value):
    """Exchange an element of an int64 array for a value, atomically: what it was."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("xchg", builder.gep(data, [args[1]]), args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), emit


@intrinsic
def cycles(typing):
    """The time stamp counter of the CPU."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(I64, [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=kind), [])

    return types.int64(), emit


clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.CPointer(types.int64)))
HAS_COUNTER = platform.machine() in ("x86_64", "AMD64")

if HAS_COUNTER:

    @njit
    def now():
        """Ticks of a clock."""
        return cycles()

else:

    @njit
    def now():
        """Ticks of a clock: nanoseconds."""
        time = np.empty(2, np.int64)
        clock_gettime(np.int32(1), time.ctypes)
        return time[0] * 1_000_000_000 + time[1]


@njit
def tick(laps, turn):
    """Note the time of every 64th turn, if it is asked for."""
    if laps.size != 0 and turn & (LAP - 1) == 0:
        laps[turn >> 6] = now()


@njit
def step(state):
    """Return the next state of a generator of random numbers; unsigned, as LLVM takes it that signed numbers do not overflow."""
    return np.int64(np.uint64(state) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407))


@njit
def bits(state):
    """31 random bits of a state."""
    return state >> 33 & (SPAN - 1)


@njit
def below(state, n):
    """A random number below n."""
    return bits(state) * n >> 31


@njit
def stamp(address, size, value):
    """Write the first and the last bytes; of less than 16 bytes, the first."""
    if size >= 8:
        c.store(address, value)
        if size >= 16:
            c.store(address + size - 8, value)
    else:
        store_byte(address, value)


@njit
def fill(address, size, value):
    """Write all bytes but what is left of a word where there is one word at most."""
    for k in range(0, size - 7, 8):
        c.store(address + k, value)
    stamp(address, size, value)


@njit
def holds(address, size, value):
    """Whether the bytes of `stamp` are as they were written."""
    if size >= 8:
        return c.load(address) == value and (size < 16 or c.load(address + size - 8) == value)
    return load_byte(address) == value & 0xFF


@njit
def holds_all(address, size, value):
    """Whether the bytes of `fill` are as they were written."""
    if size < 16:
        return holds(address, size, value)
    wrong = 0
    for k in range(0, size - 15, 8):
        wrong |= c.load(address + k) ^ value
    return wrong == 0 and c.load(address + size - 8) == value


@part
def end(heap, ref, size, value, careful):
    """Free memory: 1 if it was right."""
    is_right = not careful or holds(at(heap, ref, size), size, value)
    return np.int64(give(heap, ref, size) and is_right)


@njit
def take_neighbours(heap, size, refs, many):
    """Take memory until the last ones that were taken lie on one line of the CPU's cache: how many were taken."""
    line = together = 0
    for i in range(refs.size):
        refs[i], address = take(heap, size)
        together = together + 1 if address >> 6 == line else 1
        line = address >> 6
        if together == many:
            return i + 1
    return refs.size


@njit
def give_all(heap, refs, size):
    """Free memory: how often it was accepted."""
    right = 0
    for ref in refs:
        right += give(heap, ref, size)
    return right


# --- One thread's work, or that of several who share nothing ---


@njit
def simple(heap, n, rounds, size, refs, laps, careful):
    """glibc-simple: take n, fill; free one half in order, the other in reverse."""
    right = 0
    turn = 0
    for r in range(rounds):
        for i in range(n):
            tick(laps, turn)
            turn += 1
            ref, address = take(heap, size)
            fill(address, size, r + i)
            refs[i] = ref
        for i in range(n // 2):
            right += end(heap, refs[i], size, r + i, careful)
        for i in range(n - 1, n // 2 - 1, -1):
            right += end(heap, refs[i], size, r + i, careful)
    return right


@njit
def threadtest(heap, n, rounds, size, refs, laps, careful):
    """threadtest: take n, free n, in order."""
    right = 0
    turn = 0
    for r in range(rounds):
        for i in range(n):
            tick(laps, turn)
            turn += 1
            ref, address = take(heap, size)
            stamp(address, size, r + i)
            refs[i] = ref
        for i in range(n):
            right += end(heap, refs[i], size, r + i, careful)
    return right


@njit
def by_table(heap, n, table, order, refs, sizes, laps, careful):
    """glibc-thread: free one of the places, take another size for it, fill; in the end free all."""
    right = 0
    for i in range(n):
        tick(laps, i)
        j = order[i % order.size]
        if sizes[j] != 0:
            right += end(heap, refs[j], sizes[j], refs[j], careful)
        size = table[i % table.size]
        ref, address = take(heap, size)
        fill(address, size, ref)
        refs[j] = ref
        sizes[j] = size
    return right + drain(heap, refs, sizes)


@njit
def drain(heap, refs, sizes):
    """Free all that is there, each checked: how many were right."""
    right = 0
    for j in range(refs.size):
        if sizes[j] != 0:
            right += end(heap, refs[j], sizes[j], refs[j], True)
            sizes[j] = 0
    return right


@njit
def pareto_size(state):
    """A size of up to 1,024 bytes, each doubling half as likely as the one before."""
    r = bits(state)
    low = 2
    while low < 9 and r & 1:
        low += 1
        r >>= 1
    return 1 + (1 << low) + (r >> 1 & ((1 << low) - 1))


@njit
def pareto_place(state, ranges, offsets):
    """A place: few of them are drawn most of the time."""
    r = bits(state)
    k = 0
    while r >= ranges[k]:
        k += 1
    return offsets[k] + below(step(state), offsets[k + 1] - offsets[k])


@njit
def alloc_test(heap, n, ranges, offsets, refs, sizes, seed, laps):
    """alloc-test: half of the places are taken; then free what is at a place, all of it read, or take there, and fill."""
    right = 0
    state = seed
    for j in range(refs.size):
        state = step(state)
        if bits(state) & 1:
            state = step(state)
            put(heap, refs, sizes, j, pareto_size(state))
    for i in range(n):
        tick(laps, i)
        state = step(step(state))
        j = pareto_place(state, ranges, offsets)
        if sizes[j] != 0:
            is_right = holds_all(at(heap, refs[j], sizes[j]), sizes[j], refs[j])
            right += give(heap, refs[j], sizes[j]) and is_right
            sizes[j] = 0
        else:
            state = step(state)
            put(heap, refs, sizes, j, pareto_size(state))
            right += 1
    left = count(sizes)
    return right + (n if drain(heap, refs, sizes) == left else 0)


@njit
def count(sizes):
    """How many places are taken."""
    n = 0
    for j in range(sizes.size):
        n += sizes[j] != 0
    return n


@part
def put(heap, refs, sizes, j, size):
    """Take memory for a place, and fill it."""
    ref, address = take(heap, size)
    fill(address, size, ref)
    refs[j] = ref
    sizes[j] = size


@njit
def halving(heap, rounds, refs, sizes, laps, careful):
    """
    sh6bench: sizes of up to 1,000 grow by half, from each down to 1 by halves, so most are small; a window of refs.

    When the window is full, its upper half is freed in reverse; every other time all of it, in order.
    """
    right = 0
    turn = 0
    top = 0
    in_order = False
    for _ in range(rounds):
        base = 1
        while base <= 1000:
            size = base
            while size > 0:
                tick(laps, turn)
                turn += 1
                ref, address = take(heap, size)
                stamp(address, size, ref)
                refs[top] = ref
                sizes[top] = size
                top += 1
                size >>= 1
                if top == refs.size:
                    if in_order:
                        for k in range(top):
                            right += end(heap, refs[k], sizes[k], refs[k], careful)
                        top = 0
                    else:
                        while top > refs.size // 2:
                            top -= 1
                            right += end(heap, refs[top], sizes[top], refs[top], careful)
                    in_order = not in_order
            base += base // 2 + 1
    while top > 0:
        top -= 1
        right += end(heap, refs[top], sizes[top], refs[top], True)
    return right


def turns_of_halving(rounds):
    """Return how much `halving` takes."""
    base, n = 1, 0
    while base <= 1000:
        n += base.bit_length()
        base += base // 2 + 1
    return n * rounds


@njit
def scratch(heap, given, held, rounds, writes, size, laps):
    """cache-scratch, cache-thrash: free what was given, if anything; then take, write again and again, free."""
    right = -held.size
    for k in range(held.size):
        held[k] = take(heap, size)[0]
    if given != 0:
        right += give(heap, given, size)
    for r in range(rounds):
        tick(laps, r * LAP)
        ref, address = take(heap, size)
        store_byte(address, 0)
        for _ in range(writes):
            store_byte(address, load_byte(address) + 1)
        is_right = load_byte(address) == writes & 0xFF
        right += give(heap, ref, size) and is_right
    return right + give_all(heap, held, size)


# --- What one thread takes the other frees ---


@njit
def larson_fill(heap, refs, sizes, least, most, seed):
    """Take memory for all places."""
    state = seed
    for j in range(refs.size):
        state = step(state)
        size = least + below(state, most - least)
        ref, address = take(heap, size)
        stamp(address, size, ref)
        refs[j] = ref
        sizes[j] = size
    return 0


@njit
def larson(heap, n, refs, sizes, least, most, seed, laps, careful):
    """larson: free one of the places at random, take another size for it; the places go from thread to thread."""
    right = 0
    state = seed
    for i in range(n):
        tick(laps, i)
        state = step(state)
        j = below(state, refs.size)
        right += end(heap, refs[j], sizes[j], refs[j], careful)
        state = step(state)
        size = least + below(state, most - least)
        ref, address = take(heap, size)
        stamp(address, size, ref)
        refs[j] = ref
        sizes[j] = size
    return right


@njit
def windows(heap, n, refs, sizes, seed, laps, careful):
    """
    sh8bench: random sizes of up to 1,000, most of them small, into a window that another thread has filled before.

    Its upper half is freed in reverse, then the lower half in order; then the window is filled again.
    """
    right = 0
    state = seed
    turn = 0
    while turn < n:
        half = refs.size // 2
        for k in range(refs.size - 1, half - 1, -1):
            if sizes[k] != 0:
                right += end(heap, refs[k], sizes[k], refs[k], careful)
        for k in range(half):
            if sizes[k] != 0:
                right += end(heap, refs[k], sizes[k], refs[k], careful)
        for k in range(refs.size):
            tick(laps, turn)
            turn += 1
            state = step(state)
            size = 1 + (below(state, 1000) * bits(step(state)) >> 31)
            ref, address = take(heap, size)
            stamp(address, size, ref)
            refs[k] = ref
            sizes[k] = size
    return right


@njit
def chance(state, percent):
    """Whether something of that probability happens."""
    return below(state, 100) < percent


@njit
def items(state, most):
    """Bytes of a power of two of words; one in a hundred is 100 times as large, one in 1,000 1,000 times."""
    words = 1 << below(state, most)
    state = step(state)
    if chance(state, 1):
        state = step(state)
        if chance(state, 1):
            words *= 10_000
        elif chance(step(state), 10):
            words *= 1_000
        else:
            words *= 100
    return words * 8


@njit
def mstress(heap, allocs, first, refs, sizes, transfer, data, kept, seed, laps):
    """
    mstress: take, keep a third, free two thirds of the rest at random, exchange some with the other thread, free all.

    A row of refs and sizes is used once; what is exchanged is its number.  Every word is written, and checked before the free.
    Returns rows freed rightly, or the negative number of the wrong ones.
    """
    right = wrong = 0
    state = seed
    row = first
    top = n_kept = 0
    keep = allocs // 2
    while allocs > 0 or keep > 0:
        tick(laps, row - first)
        state = step(step(state))
        if keep == 0 or (allocs > 0 and chance(state, 50)):
            allocs -= 1
            state = step(state)
            put_row(heap, refs, sizes, row, items(state, 5))
            data[top] = row
            top += 1
        else:
            keep -= 1
            state = step(state)
            put_row(heap, refs, sizes, row, items(state, 7))
            kept[n_kept] = row
            n_kept += 1
        row += 1
        state = step(state)
        if top > 0 and chance(state, 66):
            state = step(state)
            j = below(state, top)
            found = end_row(heap, refs, sizes, data[j])
            right += found == 1
            wrong += found < 0
            data[j] = 0
        state = step(state)
        if top > 0 and chance(state, 25):
            state = step(state)
            j = below(state, top)
            state = step(state)
            data[j] = exchange(transfer, below(state, transfer.size), data[j])
    for j in range(n_kept):
        found = end_row(heap, refs, sizes, kept[j])
        right += found == 1
        wrong += found < 0
    for j in range(top):
        found = end_row(heap, refs, sizes, data[j])
        right += found == 1
        wrong += found < 0
    return right if wrong == 0 else -wrong


@part
def put_row(heap, refs, sizes, row, size):
    """Take memory for a row, and fill it."""
    ref, address = take(heap, size)
    fill(address, size, ref ^ size)
    refs[row] = ref
    sizes[row] = size


@part
def end_row(heap, refs, sizes, row):
    """Free the memory of a row: 1, 0 if row 0 was meant, which is none, -1 if it was wrong."""
    if row == 0:
        return 0
    ref, size = refs[row], sizes[row]
    is_right = holds_all(at(heap, ref, size), size, ref ^ size)
    return 1 if give(heap, ref, size) and is_right else -1


@njit
def clear_transfer(heap, refs, sizes, transfer, percent, seed):
    """Free a share of what lies in the transfer: how many were right, or the negative number of the wrong ones."""
    right = wrong = 0
    state = seed
    for j in range(transfer.size):
        state = step(state)
        if chance(state, percent):
            found = end_row(heap, refs, sizes, transfer[j])
            right += found == 1
            wrong += found < 0
            transfer[j] = 0
    return right if wrong == 0 else -wrong


@njit
def make_batches(heap, n, batches, positions, laps):
    """xmalloc-test: take batch after batch, fill, hand each over."""
    turn = 0
    for b in range(n):
        while b - published(positions, TAIL) >= batches.shape[0]:
            sched_yield()
        batch = batches[b % batches.shape[0]]
        for i in range(batch.size):
            tick(laps, turn)
            turn += 1
            ref, address = take(heap, 64)
            fill(address, 64, b + i)
            batch[i] = ref
        publish(positions, HEAD, b + 1)
    return 0


@njit
def free_batches(heap, n, batches, positions, laps, careful):
    """xmalloc-test: free batch after batch."""
    right = 0
    turn = 0
    for b in range(n):
        while published(positions, HEAD) == b:
            sched_yield()
        batch = batches[b % batches.shape[0]]
        for i in range(batch.size):
            tick(laps, turn)
            turn += 1
            right += end(heap, batch[i], 64, b + i, careful)
        publish(positions, TAIL, b + 1)
    return right


@njit
def first_node(nodes):
    """prod-con: take the node that stands before the first."""
    node, address = take(nodes, 16)
    c.store(address, 0)
    return node


@njit
def produce(nodes, heap, first, n, laps):
    """prod-con: take and fill n objects of 64 bytes, put each into a queue of nodes of 16 bytes, which are taken, too."""
    tail = at(nodes, first, 16)
    for i in range(n):
        tick(laps, i)
        ref, address = take(heap, 64)
        fill(address, 64, i)
        node, address = take(nodes, 16)
        c.store(address, 0)
        c.store(address + 8, ref)
        store_after(tail, node)
        tail = address
    return 0


@njit
def consume(nodes, heap, first, n, laps, careful):
    """prod-con: take n objects from the queue, free them and the nodes, the last one, too: how many were right."""
    right = 0
    node = first
    for i in range(n):
        tick(laps, i)
        address = at(nodes, node, 16)
        following = load_before(address)
        while following == 0:
            sched_yield()
            following = load_before(address)
        right += end(heap, c.load(at(nodes, following, 16) + 8), 64, i, careful)
        right += give(nodes, node, 16)
        node = following
    return right + give(nodes, node, 16)

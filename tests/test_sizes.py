"""Memory by size: classes, misuse, large memory, alignment, realloc, tuning, compiled code, threads; a model beside it."""

import copy
import ctypes
import gc
import itertools
import pickle
import re
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from inside import Inside
from numba import njit
from worker import Worker

import jitslab
from jitslab import NULL
from jitslab.sizes import table as classes
from jitslab.sizes.classes import SizeClasses
from jitslab.sizes.layout import LARGEST, MAX_ALIGN

LARGE = 3 << 20
SIZES = [1, 7, 8, 16, 17, 100, 128, 129, 1000, 1024, 4096, 5000, 100_000, 1 << 20, LARGEST, LARGEST + 1, LARGE]


@pytest.fixture
def memory():
    """Return an open allocator, and recount it at the end."""
    with SizeClasses("test") as it:
        yield it
        if not it.closed:
            it.check()


# --- Classes ---


def test_no_size_of_the_fixed_table_wastes_more_than_a_fifth():
    """Of every size up to the largest class: at most 20 % of what is given out, or, at the bottom, 15 bytes."""
    table = np.array(classes.fixed_table())
    sizes = np.arange(1, LARGEST + 1)
    given_out = table[np.searchsorted(table, sizes)]
    waste = given_out - sizes

    assert ((waste <= 0.2 * given_out) | (waste <= 15)).all()
    assert (waste[:128] <= 15).all()


def test_a_class_above_a_kilobyte_is_an_odd_number_of_lines():
    """So no stride is padded beyond its class, and records use all sets of the CPU's caches."""
    assert all(size % 128 == 64 for size in classes.fixed_table() if size >= 1024)


def test_classes_have_slot_numbers_of_their_own(memory):
    """No two classes share a slot number, large memory included."""
    memory.allocate(64, align=64)
    memory.allocate(100, align=4096)
    memory.tune(np.arange(1, 700), 80)
    rows = memory._rows[1 : memory._sizes_row["n_rows"]]
    ends = rows["end"].tolist()

    assert (rows["ptr_base"][1:] == ends[:-1]).all()
    assert ends[-1] <= memory._sizes_row["large_base"]


@pytest.mark.parametrize("size", SIZES)
def test_memory_holds_what_was_written(memory, size):
    """Two pieces of a size do not overlap, and are seen by view and address alike."""
    p, q = memory.allocate(size), memory.allocate(size)
    memory.view(p, size)[:] = 1
    memory.view(q, size)[:] = 2

    assert memory.view(p, size).sum() == size
    assert (ctypes.c_uint8 * size).from_address(memory.address(q, size))[size - 1] == 2
    assert memory.address(q) == memory.address(q, size) == memory.view(q, size).ctypes.data
    assert {p, q} == set(memory.live().tolist())
    assert p in memory
    memory.free(p, size)
    memory.free(q, size)
    assert len(memory) == 0
    assert p not in memory


@pytest.mark.parametrize("align", [1 << k for k in range(MAX_ALIGN.bit_length())])
def test_alignment_is_kept(memory, align):
    """Every power of two up to a page, of small, large and odd sizes; freed with the size alone."""
    held = [(memory.allocate(size, align=align), size) for size in SIZES for _ in range(3)]

    assert all(memory.address(p, size) % align == 0 for p, size in held)
    for p, size in held:
        memory.view(p, size)[:] = 5
        memory.free(p, size)
    assert len(memory) == 0


@pytest.mark.parametrize("align", [1, 16, 64, 4096])
def test_alignment_is_kept_after_tuning(memory, align):
    """A tuned class of an odd size serves no alignment that it does not have."""
    memory.tune([24] * 100 + [40] * 100 + [1100] * 50)
    held = [(memory.allocate(size, align=align), size) for size in (20, 24, 40, 1100)]

    assert all(memory.address(p, size) % align == 0 for p, size in held)
    for p, size in held:
        memory.free(p, size)


def test_fixed_classes_are_aligned_by_nature(memory):
    """Every class of the fixed table gives multiples of 16."""
    assert all(memory.address(memory.allocate(size)) % 16 == 0 for size in memory.table)


@pytest.mark.parametrize("size", SIZES)
def test_zeroed_memory_is_zero(memory, size):
    """Also where something else was before."""
    p = memory.allocate(size)
    memory.view(p, size)[:] = 255
    memory.free(p, size)

    assert not memory.view(memory.allocate(size, zero=True), size).any()


# --- Misuse ---


def cases(memory):
    """Return calls that are refused, by name."""
    live, stale, large = memory.allocate(100), memory.allocate(100), memory.allocate(LARGE)
    aligned = memory.allocate(1100, align=256)
    memory.free(stale, 100)
    other = SizeClasses("other")
    foreign = other.allocate(100)
    gone = memory.allocate(LARGE)
    memory.free(gone, LARGE)
    return {
        "size 0": (lambda: memory.allocate(0), jitslab.SizeError, "a size must be 1 .. 2**46 bytes, got 0"),
        "size -5": (lambda: memory.allocate(-5), jitslab.SizeError, "a size must be 1 .. 2**46 bytes, got -5"),
        "size -5000": (lambda: memory.allocate(-5000), jitslab.SizeError, "a size must be 1 .. 2**46 bytes, got -5000"),
        "size 2**70": (lambda: memory.allocate(1 << 70), jitslab.SizeError, f"a size must be 1 .. 2**46 bytes, got {1 << 70}"),
        "size 1.0": (lambda: memory.allocate(1.0), jitslab.SizeTypeError, "a size is an integer, got float"),
        "size None": (lambda: memory.allocate(None), jitslab.SizeTypeError, "a size is an integer, got NoneType"),
        "size 'a'": (lambda: memory.allocate("a"), jitslab.SizeTypeError, "a size is an integer, got str"),
        "align 0": (
            lambda: memory.allocate(8, align=0),
            jitslab.SizeError,
            "an alignment must be a power of two, 1 .. 4096, got 0",
        ),
        "align 24": (
            lambda: memory.allocate(8, align=24),
            jitslab.SizeError,
            "an alignment must be a power of two, 1 .. 4096, got 24",
        ),
        "align 8192": (
            lambda: memory.allocate(8, align=8192),
            jitslab.SizeError,
            "an alignment must be a power of two, 1 .. 4096, got 8192",
        ),
        "align 2.0": (lambda: memory.allocate(8, align=2.0), jitslab.SizeTypeError, "an alignment is an integer, got float"),
        "too much": (
            lambda: memory.allocate(1 << 46),
            jitslab.CacheFullError,
            f"allocator 'test' has no memory for {1 << 46} bytes more: the system gives none",
        ),
        "NULL": (lambda: memory.free(NULL, 8), jitslab.NullHandleError, "the ptr is NULL"),
        "negative": (lambda: memory.free(-1, 8), jitslab.ForeignHandleError, "-1 is no ptr: 1 .. 2**63 - 1"),
        "2**63": (lambda: memory.free(1 << 63, 8), jitslab.ForeignHandleError, f"{1 << 63} is no ptr: 1 .. 2**63 - 1"),
        "ptr 'a'": (lambda: memory.free("a", 8), jitslab.HandleTypeError, "a handle is an integer, got str"),
        "stale": (lambda: memory.free(stale, 100), jitslab.StaleHandleError, f"the memory of ptr {stale:#x} was freed"),
        "stale large": (lambda: memory.free(gone, LARGE), jitslab.StaleHandleError, f"the memory of ptr {gone:#x} was freed"),
        "foreign": (
            lambda: memory.free(foreign, 100),
            jitslab.ForeignHandleError,
            f"allocator 'test' never issued ptr {foreign:#x}",
        ),
        "wrong class": (
            lambda: memory.free(live, 200),
            jitslab.WrongSizeError,
            f"ptr {live:#x} is of the class of 97 to 112 bytes, not of 200",
        ),
        "wrong, large": (
            lambda: memory.free(live, LARGE),
            jitslab.WrongSizeError,
            f"ptr {live:#x} is of the class of 97 to 112 bytes, not of {LARGE}",
        ),
        "large, wrong": (
            lambda: memory.free(large, LARGE - 1),
            jitslab.WrongSizeError,
            f"ptr {large:#x} is of {LARGE} bytes, not of {LARGE - 1}",
        ),
        "large as small": (
            lambda: memory.free(large, 100),
            jitslab.WrongSizeError,
            f"ptr {large:#x} is of {LARGE} bytes, not of 100",
        ),
        "aligned, wrong": (
            lambda: memory.free(aligned, 1300),
            jitslab.WrongSizeError,
            f"ptr {aligned:#x} is aligned memory of up to 1280 bytes, not of 1300",
        ),
        "view": (lambda: memory.view(stale, 100), jitslab.StaleHandleError, f"the memory of ptr {stale:#x} was freed"),
        "view, wrong": (
            lambda: memory.view(live, 300),
            jitslab.WrongSizeError,
            f"ptr {live:#x} is of the class of 97 to 112 bytes, not of 300",
        ),
        "address": (lambda: memory.address(stale), jitslab.StaleHandleError, f"the memory of ptr {stale:#x} was freed"),
        "realloc": (lambda: memory.realloc(stale, 100, 200), jitslab.StaleHandleError, f"the memory of ptr {stale:#x} was freed"),
        "realloc to 0": (lambda: memory.realloc(live, 100, 0), jitslab.SizeError, "a size must be 1 .. 2**46 bytes, got 0"),
        "realloc, wrong": (
            lambda: memory.realloc(live, 300, 400),
            jitslab.WrongSizeError,
            f"ptr {live:#x} is of the class of 97 to 112 bytes, not of 300",
        ),
        "realloc, too much": (
            lambda: memory.realloc(live, 100, 1 << 46),
            jitslab.CacheFullError,
            f"allocator 'test' has no memory for {1 << 46} bytes more: the system gives none",
        ),
        "name": (lambda: SizeClasses(""), jitslab.CapacityError, "an allocator is named by a string that is not empty, got ''"),
        "capacity": (lambda: SizeClasses(capacity=0), jitslab.CapacityError, f"capacity must be 1 .. {16 << 30} bytes, got 0"),
        "copy": (
            lambda: copy.copy(memory),
            jitslab.CopyError,
            f"{memory!r} cannot be copied: a ptr names memory of one allocator",
        ),
        "pickle": (
            lambda: pickle.dumps(memory),
            jitslab.CopyError,
            f"{memory!r} cannot be pickled: its memory is private to this process",
        ),
        "few classes": (lambda: memory.tune([8], 16), jitslab.SizeError, "a table has 17 classes or more, got 16"),
        "many classes": (lambda: memory.tune([8], 256), jitslab.SizeError, "a table has at most 255 classes, got 256"),
        "tune 0": (lambda: memory.tune([0]), jitslab.SizeError, "an observed size must be at least 1, got 0"),
        "tune 'a'": (lambda: memory.tune(["a"]), jitslab.SizeTypeError, "observed sizes are integers, got <U1 of shape (1,)"),
    }


def test_misuse_is_refused_by_name_and_changes_nothing(memory):
    """Exact class and message of everything that is refused; afterwards all laws hold and what was live is."""
    table = cases(memory)
    live = memory.live().tolist()
    for name, (call, error, message) in table.items():
        with pytest.raises(error) as caught:
            call()
        assert (name, str(caught.value), type(caught.value)) == (name, message, error)
    memory.check()

    assert live == memory.live().tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.allocate(8),
        lambda m: m.allocate(LARGE),
        lambda m: m.allocate(8, zero=True),
        lambda m: m.free(5, 8),
        lambda m: m.realloc(5, 8, 16),
        lambda m: m.view(5, 8),
        lambda m: m.address(5),
        lambda m: m.stats,
        lambda m: m.live(),
        len,
        lambda m: 5 in m,
        lambda m: m.tune([8]),
        lambda m: m.check(),
        lambda m: m.shrink(),
        lambda m: m.flush(),
        lambda m: m.clear(),
    ],
)
def test_closed_allocator_refuses_everything(call):
    """And one that was never opened, too."""
    memory = SizeClasses("shut")
    memory.allocate(LARGE)
    memory.close()
    memory.close()

    assert repr(memory) == "<SizeClasses 'shut': closed>"
    with pytest.raises(jitslab.ClosedError, match="allocator 'shut' is closed"):
        call(memory)
    with pytest.raises(jitslab.ClosedError, match="this SizeClasses was never opened"):
        call(SizeClasses.__new__(SizeClasses))


def test_second_init_is_refused(memory):
    """It would lose what is live."""
    with pytest.raises(jitslab.SlabError, match="is open already"):
        memory.__init__("again")


def test_class_that_is_full_says_so_and_the_others_go_on():
    """`capacity` is bytes of each class."""
    with SizeClasses("small", capacity=64 * 10) as memory:
        held = [memory.allocate(64) for _ in range(10)]
        with pytest.raises(jitslab.CacheFullError):
            memory.allocate(64)
        kept = memory.view(held[0], 64).copy()
        with pytest.raises(jitslab.CacheFullError):
            memory.realloc(memory.allocate(32), 32, 64)
        memory.allocate(80)

        assert (memory.view(held[0], 64) == kept).all()


# --- realloc ---


@pytest.mark.parametrize(("old", "new"), list(itertools.product([1, 100, 5000, 1 << 20, LARGE, 2 * LARGE], repeat=2)))
def test_realloc_keeps_the_content(memory, old, new):
    """Up to the lesser size; the old ptr is refused if it is not the new one."""
    data = np.random.default_rng(old).integers(0, 256, old, np.uint8)
    p = memory.allocate(old)
    memory.view(p, old)[:] = data
    q = memory.realloc(p, old, new)
    n = min(old, new)

    assert (memory.view(q, new)[:n] == data[:n]).all()
    assert memory.live().tolist() == [q]
    memory.view(q, new)[:] = 1
    memory.free(q, new)
    assert memory.stats.large_used == 0


def test_realloc_within_a_class_stays(memory):
    """Nothing is copied."""
    p = memory.allocate(100)

    assert memory.realloc(p, 100, 112) == p


# --- Large memory ---


def test_large_memory_is_counted_and_given_back(memory):
    """By whole pages."""
    p = memory.allocate(LARGE - 5)

    assert (memory.stats.large, memory.stats.large_used) == (1, LARGE)
    memory.free(p, LARGE - 5)
    assert (memory.stats.large, memory.stats.large_used) == (0, 0)


def test_array_on_freed_large_memory_may_be_used():
    """The pages are empty, but mapped until the last array is gone; also after `close` and without the allocator."""
    memory = SizeClasses("large")
    p, q, r = (memory.allocate(LARGE) for _ in range(3))
    views = [memory.view(each, LARGE) for each in (p, q, r)]
    part = memory.view(p, LARGE)[100:200]
    for view in views:
        view[:] = 9
    memory.free(p, LARGE)
    assert part.sum() == 0
    new = memory.allocate(LARGE)  # takes p's slot, and pages of its own
    memory.view(new, LARGE)[:] = 3
    assert part.sum() == 0
    del views[0], part
    gc.collect()
    assert memory.view(new, LARGE).sum() == 3 * LARGE
    q2 = memory.realloc(q, LARGE, 2 * LARGE)
    views[0][:] = 1
    assert memory.view(q2, 2 * LARGE)[:LARGE].sum() == 9 * LARGE
    memory.close()
    del memory
    gc.collect()
    views[1][:] = 2
    assert views[1].sum() == 2 * LARGE


def test_large_memory_goes_back_when_an_array_is_gone_before_free(memory):
    """The array held the pages; then the ptr does again."""
    p = memory.allocate(LARGE)
    memory.view(p, LARGE)[:] = 4
    gc.collect()

    assert memory.view(p, LARGE).sum() == 4 * LARGE
    assert memory.realloc(p, LARGE, LARGE) == p
    memory.free(p, LARGE)


def test_large_memory_is_unmapped():
    """A thousand pieces of 64 MiB in turn do not use the address space up; nor does an allocator that is dropped."""
    program = (
        "import resource, jitslab\n"
        "m = jitslab.sizes.classes.SizeClasses(capacity=1 << 20)\n"
        "soft = 64 << 30\n"
        "resource.setrlimit(resource.RLIMIT_AS, (soft, soft))\n"
        "for i in range(1200):\n"
        "    p = m.allocate(64 << 20)\n"
        "    m.view(p, 64 << 20)[0] = 1\n"
        "    m.free(p, 64 << 20)\n"
        "for i in range(1200):\n"
        "    m = None\n"
        "    m = jitslab.sizes.classes.SizeClasses(capacity=1 << 20) if i % 300 == 0 else m\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def test_an_allocator_takes_little_of_what_limits_count():
    """Its tables are writable where threads came: of RLIMIT_DATA and strict overcommit it takes some 12 MiB, not 160."""

    def writable():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))

    SizeClasses("first").close()
    before = writable()
    with SizeClasses("test") as memory:
        memory.free(memory.allocate(100), 100)
        taken = writable() - before

    assert taken < 24 << 20


def test_thread_without_memory_for_its_heaps_shares_one():
    """It allocates and frees by the slab layer, as threads beyond the table of heaps do."""
    program = (
        "import resource, threading, jitslab\n"
        "from numba import njit\n"
        "@njit(nogil=True)\n"
        "def work(memory, n):\n"
        "    right = 0\n"
        "    for i in range(n):\n"
        "        ptr = memory.allocate(64)\n"
        "        right += ptr != 0 and memory.free(ptr, 64)\n"
        "    return right\n"
        "memory = jitslab.SlabAllocator('test')\n"
        "print(work(memory, 1000))\n"
        "hard = resource.getrlimit(resource.RLIMIT_DATA)[1]\n"
        "def run():\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (4096, hard))\n"
        "    print(work(memory, 1000))\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))\n"
        "thread = threading.Thread(target=run)\n"
        "thread.start()\n"
        "thread.join()\n"
        "memory.check()\n"
        "print(len(memory))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("1000\n1000\n0\n", 0), done.stderr


def fill(address, n):
    """Write sevens to memory."""
    ctypes.memset(address, 7, n)


def is_filled(address):
    """Whether sevens are there; what went back to the system reads as zeros."""
    return ctypes.c_ubyte.from_address(address).value == 7


def test_freed_pages_serve_the_next_piece_that_they_fit(memory):
    """One of the same size, or up to a fifth smaller, whose pages' end goes back; what it holds is as undefined as ever."""
    p = memory.allocate(LARGE)
    at = memory.address(p)
    fill(at, LARGE)
    memory.free(p, LARGE)
    assert memory.stats.memory == LARGE

    q = memory.allocate(LARGE - 100_000)

    assert memory.address(q) == at
    assert memory.stats.memory == memory.stats.large_used < LARGE
    assert is_filled(at)
    assert not is_filled(at + LARGE - 4096)
    with pytest.raises(jitslab.StaleHandleError):
        memory.view(p, LARGE)


def test_zeroed_large_memory_is_zero_wherever_it_comes_from(memory):
    """Pages that were used before are not taken for it."""
    p = memory.allocate(LARGE)
    memory.view(p, LARGE)[:] = 7
    memory.free(p, LARGE)
    gc.collect()
    q = memory.allocate(LARGE)
    memory.view(q, LARGE)[:] = 7
    memory.free(q, LARGE)

    assert not memory.view(memory.allocate(LARGE, zero=True), LARGE).any()


@pytest.mark.parametrize("give_back", ["shrink", "close"])
def test_parked_pages_go_back(give_back):
    """When they are asked back, and at the end."""
    memory = SizeClasses("test")
    pieces = [memory.allocate(LARGE) for _ in range(3)]
    places = [memory.address(p) for p in pieces]
    for p, at in zip(pieces, places, strict=True):
        fill(at, LARGE)
        memory.free(p, LARGE)
    assert all(map(is_filled, places))

    getattr(memory, give_back)()

    assert not any(map(is_filled, places))
    memory.close()


def test_what_is_parked_has_bounds_and_turns_over(memory):
    """Not more than 16 MiB, and not for ever what fits nobody."""
    pieces = [memory.allocate(LARGE) for _ in range(20)]
    for p in pieces:
        memory.free(p, LARGE)
    assert 0 < memory.stats.memory <= 16 << 20
    memory.free(memory.allocate(100 << 20), 100 << 20)
    assert memory.stats.memory <= 16 << 20

    for _ in range(8):
        memory.free(memory.allocate(LARGE // 2), LARGE // 2)
        memory.free(memory.allocate(2 * LARGE), 2 * LARGE)

    assert memory.stats.memory < 5 * LARGE


def test_parked_pages_have_one_owner(memory):
    """Two threads take and give large memory of three sizes at once: each finds in it what it wrote."""

    @njit(nogil=True)
    def work(memory, n, me):
        wrong = 0
        for i in range(n):
            size = LARGE + (i * me) % 3 * 700_000
            ptr = memory.allocate(size)
            data = memory.bytes(ptr, size)
            data[0] = data[size // 2] = data[size - 1] = me
            other = memory.allocate(LARGE)
            memory.bytes(other, LARGE)[:100] = 0
            wrong += data[0] != me or data[size // 2] != me or data[size - 1] != me
            wrong += not memory.free(other, LARGE)
            wrong += not memory.free(ptr, size)
        return wrong

    work(memory, 1, 1)
    found = []
    threads = [threading.Thread(target=lambda me=me: found.append(work(memory, 3000, me))) for me in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [0, 0]
    assert memory.stats.large_used == 0
    memory.shrink()
    assert not memory._sizes_row["retained"].any()


def test_large_memory_freed_by_several_at_once_is_freed_once(memory):
    """Even if its slot and its pages are another ptr's already when the slower one gets to them."""

    @njit(nogil=True)
    def work(memory, shared, n):
        freed = 0
        for _ in range(n):
            ptr = shared[0]
            if memory.free(ptr, LARGE):
                freed += 1
                shared[0] = memory.allocate(LARGE)
        return freed

    shared = np.array([memory.allocate(LARGE)])
    freed = work(memory, shared, 1)
    threads = [threading.Thread(target=work, args=(memory, shared, 3_000_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert freed == 1
    assert memory.live().tolist() == [shared[0]]
    assert memory.stats.large_used == LARGE


def test_parked_pages_are_given_up_for_who_would_get_none():
    """Where the address space is used up but for them, of whatever sizes they are."""
    program = (
        "import resource, jitslab\n"
        "m, mib = jitslab.sizes.classes.SizeClasses(), 1 << 20\n"
        "m.free(m.allocate(3 * mib, zero=True), 3 * mib)\n"
        "for p in [m.allocate(3 * mib) for _ in range(5)]:\n"
        "    m.free(p, 3 * mib)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2 * mib, -1))\n"
        "for zero in (False, True):\n"
        "    m.free(m.allocate(12 * mib, zero=zero), 12 * mib)\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


# --- Tuning ---


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(1, LARGEST + 10), st.integers(0, 10_000), max_size=40),
    most=st.integers(60, 120),
)
def test_tuned_table_is_never_worse_than_the_fixed_one(sizes, most):
    """On the sizes that it is tuned to; and it serves every size."""
    unique, counts = classes.as_counts(sizes)
    table = classes.best_table(unique, counts, most)

    assert classes.used_bytes(table, unique, counts) <= classes.used_bytes(classes.fixed_table(), unique, counts)
    assert len(table) <= most
    assert table == sorted(set(table))
    assert table[-1] == LARGEST
    assert set(classes.OCTAVE_CLASSES) <= set(table)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 128), min_size=1, max_size=60), spare=st.integers(0, 3))
def test_tuned_table_is_the_best_there_is(sizes, spare):
    """Compared with every choice of so many classes."""
    unique, counts = classes.as_counts(sizes)
    candidates = sorted({*(classes.as_class(size) for size in sizes), *range(16, 128, 16)} - set(classes.OCTAVE_CLASSES))
    tables = [[*classes.OCTAVE_CLASSES, *chosen] for k in range(spare + 1) for chosen in itertools.combinations(candidates, k)]
    best = min(classes.used_bytes(table, unique, counts) for table in tables)

    assert classes.used_bytes(classes.best_table(unique, counts, len(classes.OCTAVE_CLASSES) + spare), unique, counts) == best


def test_tuning_keeps_what_is_live(memory):
    """Ptrs of classes that are no longer in force are viewed and freed as before, refused with sizes that were never theirs."""
    rng = np.random.default_rng(3)
    held = [(memory.allocate(int(n)), int(n)) for n in rng.integers(1, 3000, 500)]
    for i, (p, n) in enumerate(held):
        memory.view(p, n)[:] = i % 251
    first = memory.tune([40] * 1000 + [72] * 500 + [1500] * 100)
    assert first.applied
    assert first.after < first.before == first.fixed
    held += [(memory.allocate(n), n) for n in (40, 72, 1500, 700) for _ in range(50)]
    for i, (p, n) in enumerate(held[500:], 500):
        memory.view(p, n)[:] = i % 251
    assert all((memory.view(p, n) == i % 251).all() for i, (p, n) in enumerate(held))
    again = memory.tune([40] * 1000 + [72] * 500 + [1500] * 100)
    assert not again.applied
    p, n = held[0]
    with pytest.raises(jitslab.WrongSizeError):
        memory.free(p, 2 * n + 200)
    memory.check()
    for p, n in held:
        memory.free(p, n)
    assert len(memory) == 0


def test_observed_sizes_are_counted_and_tuned_to():
    """From Python and from compiled code, while it is switched on."""
    with SizeClasses("seen", observe=True) as memory:
        held = [memory.allocate(40) for _ in range(7)]
        memory.allocate(LARGE)
        assert take(memory, 24, 5) != NULL
        memory.observe = False
        memory.allocate(40)
        sizes, counts = memory.observed()
        assert dict(zip(sizes.tolist(), counts.tolist(), strict=True)) == {24: 5, 40: 7}
        stats = memory.stats
        assert (stats.observed, stats.asked, stats.given) == (12, 400, 7 * 48 + 5 * 32)
        assert stats.waste == pytest.approx(1 - 400 / 496)
        found = memory.tune()
        assert (found.applied, found.after, found.observed) == (True, 0.0, 12)
        assert {24, 40} <= set(memory.table)
        for p in held:
            memory.free(p, 40)


# --- Compiled code ---


@numba.njit
def take(memory, size, n):
    """Allocate n pieces; the last ptr."""
    p = 0
    for _ in range(n):
        p = memory.allocate(size)
    return p


@numba.njit
def use(memory, size):
    """Allocate, write, read, enlarge, free; the sum and what was answered."""
    p = memory.allocate(size)
    b = memory.bytes(p, size)
    b[:] = 3
    q = memory.realloc(p, size, 2 * size)
    total = memory.bytes(q, 2 * size)[:size].sum()
    is_there = memory.address(q, 2 * size) != 0
    return total, is_there, memory.free(q, 2 * size), memory.free(q, 2 * size), memory.address(q, 2 * size)


@numba.njit(nogil=True)
def churn(memory, sizes, order, rounds):
    """Free one of the pieces at random and allocate another; returns how many were found changed."""
    held = np.zeros(sizes.size, np.int64)
    bad = 0
    for _ in range(rounds):
        for i in range(order.size):
            j = order[i]
            if held[j] != 0:
                b = memory.bytes(held[j], sizes[j])
                bad += b[0] != j & 127 or b[sizes[j] - 1] != j & 127
                bad += not memory.free(held[j], sizes[j])
            held[j] = memory.allocate(sizes[j])
            b = memory.bytes(held[j], sizes[j])
            b[0] = j & 127
            b[sizes[j] - 1] = j & 127
    for j in range(held.size):
        bad += held[j] != 0 and not memory.free(held[j], sizes[j])
    return bad


@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_uses_memory_of_any_size(memory, size):
    """All methods."""
    assert use(memory, size) == (3 * size, True, True, False, 0)
    assert len(memory) == 0


def test_compiled_code_is_answered_where_python_raises(memory):
    """NULL, False, 0 and scratch memory with a fault; nothing is changed."""

    @numba.njit
    def misuse(memory, live, stale):
        answers = [
            memory.allocate(0),
            memory.allocate(-7),
            memory.allocate(1 << 60),
            np.int64(memory.free(live, 200)),
            np.int64(memory.free(live, 0)),
            np.int64(memory.free(live, LARGE)),
            np.int64(memory.free(stale, 100)),
            np.int64(memory.free(0, 100)),
            np.int64(memory.free(-5, 100)),
            memory.realloc(stale, 100, 200),
            memory.realloc(live, 100, 1 << 46),
            memory.address(live, 200),
        ]
        b = memory.bytes(stale, 100)
        b[:] = 1
        return answers, b.size, memory.bytes(stale, LARGE).size

    live, stale = memory.allocate(100), memory.allocate(100)
    memory.view(live, 100)[:] = 8
    memory.free(stale, 100)

    assert misuse(memory, live, stale) == ([0] * 12, 100, LARGE)
    assert memory.view(live, 100).sum() == 800
    with pytest.raises(jitslab.FaultError) as caught:
        memory.raise_faults()
    assert ["'" + memory.name + "-112'", "'" + memory.name + "-large'"] == re.findall("on cache ('.*?')", str(caught.value))
    assert 2 == caught.value.count
    memory.raise_faults()


def test_allocator_may_be_a_global_of_compiled_code():
    """The function keeps it."""
    held = SizeClasses("global")

    @numba.njit
    def run():
        return held.free(held.allocate(100), 100)

    assert run()


def test_wrong_types_are_refused_when_compiled(memory):
    """By the name of the method."""

    @numba.njit
    def wrong(memory):
        return memory.allocate(1.5)

    with pytest.raises(numba.TypingError, match=r"jitslab: allocate\(size\) takes integers, got float64"):
        wrong(memory)
    with pytest.raises(numba.TypingError, match="Cannot determine Numba type"):
        take(SizeClasses.__new__(SizeClasses), 8, 1)


def test_threads_share_an_allocator(memory):
    """Four of them churn mixed sizes; nothing is mixed up, and all is free in the end."""
    rng = np.random.default_rng(5)
    sizes = np.concatenate([rng.integers(1, 2000, 300), [LARGE, LARGEST, 100_000]])
    bad = []

    def run(seed):
        order = np.random.default_rng(seed).integers(0, sizes.size, 3000)
        bad.append(churn(memory, sizes, order, 5))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert bad == [0] * 4
    assert len(memory) == 0
    assert memory.stats.large_used == 0


def test_memory_is_freed_by_another_thread(memory):
    """Any thread may."""
    held = [(memory.allocate(n), n) for n in SIZES for _ in range(20)]
    thread = threading.Thread(target=lambda: [memory.free(p, n) for p, n in held])
    thread.start()
    thread.join()

    assert len(memory) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_child_of_fork_has_its_own_memory():
    """What the child frees and allocates is not seen in the parent."""
    program = (
        "import os, jitslab\n"
        "m = jitslab.sizes.classes.SizeClasses()\n"
        "p, q = m.allocate(100), m.allocate(3 << 20)\n"
        "m.view(p, 100)[:] = 1; m.view(q, 3 << 20)[:] = 1\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    ok = m.view(q, 3 << 20).sum() == 3 << 20\n"
        "    m.free(p, 100); m.free(q, 3 << 20); m.allocate(100); m.check()\n"
        "    os._exit(0 if ok and len(m) == 1 else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert m.view(p, 100).sum() == 100 and len(m) == 2\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def test_subclass_may_have_slots_of_its_own():
    """Compiled code finds its SIZES row all the same."""

    class Named(SizeClasses):
        __slots__ = ("caches",)

    with Named("sub") as memory:
        memory.caches = {}
        assert use(memory, 100)[0] == 300


# --- NUMA nodes ---


def run_on(memory, node):
    """Have every class take every CPU for one of this simulated node."""
    for cache in (*memory._caches, memory._parts.large):
        if cache is not None:
            Inside(cache).run_on(node)


@njit
def take_all(memory, sizes):
    """Allocate each size and mark it."""
    ptrs = np.zeros(sizes.size, np.int64)
    for i in range(sizes.size):
        ptrs[i] = memory.allocate(sizes[i])
        memory.bytes(ptrs[i], sizes[i])[0] = i & 127
    return ptrs


@njit
def give_all(memory, ptrs, sizes):
    """Free them; returns how many were freed with their mark on."""
    n = 0
    for i in range(sizes.size):
        has_mark = memory.bytes(ptrs[i], sizes[i])[0] == i & 127
        n += memory.free(ptrs[i], sizes[i]) and has_mark
    return n


def test_memory_is_of_the_node_of_the_thread_and_goes_home():
    """Each class has a set of slabs for each node; what is freed elsewhere goes home."""
    sizes = np.random.default_rng(1).integers(1, 2000, 4000)
    with SizeClasses("numa", nodes=3) as memory:
        for node in (0, 2):
            run_on(memory, node)
            with Worker() as worker:
                ptrs = worker.do(take_all, memory, sizes)
            nodes = set()
            for cache in memory._caches:
                if cache is not None and len(cache):
                    nodes |= {found.node for found in cache.nodes if found.live}
            assert nodes == {node}
            run_on(memory, 1)
            with Worker() as worker:
                assert worker.do(give_all, memory, ptrs, sizes) == sizes.size
            assert len(memory) == 0
            memory.check()


@pytest.mark.parametrize("nodes", [2, 8, 64])
def test_classes_fit_on_many_nodes(nodes):
    """All classes open, with less room each."""
    with SizeClasses("many", nodes=nodes) as memory:
        ptrs = {size: memory.allocate(size) for size in (1, 100, 5000, 1 << 20, 3 << 20)}
        for size, ptr in ptrs.items():
            memory.free(ptr, size)
        memory.check()


def test_wrong_placement_of_memory_is_refused():
    """By the error of caches, before anything is made."""
    with pytest.raises(jitslab.NodeError, match="nodes must be 1 .. 64 simulated nodes"):
        SizeClasses("wrong", nodes=65)


# --- What went wrong once ---


def at_once(*works):
    """Run functions at the same instant, each in a thread; returns what they answered, or the class of what they raised."""
    barrier, answers = threading.Barrier(len(works)), [None] * len(works)

    def run(i, work):
        barrier.wait()
        try:
            answers[i] = work()
        except jitslab.SlabError as error:
            answers[i] = type(error)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def assert_classes_are_apart(memory):
    """No two classes have a slot number in common."""
    rows = memory._rows[1 : int(memory._sizes_row["n_rows"])]
    order = np.argsort(rows["ptr_base"])
    assert (rows["ptr_base"][order][1:] >= rows["end"][order][:-1]).all()
    assert len(memory._caches) == int(memory._sizes_row["n_rows"])


def test_classes_that_threads_open_at_once_are_apart():
    """First uses of alignments, and tables, from several threads."""
    for _ in range(3):
        with SizeClasses("racing") as memory:
            aligns = [32, 64, 128, 256, 512, 1024]
            ptrs = at_once(*(lambda a=a: memory.allocate(300, align=a) for a in aligns))
            for ptr, align in zip(ptrs, aligns, strict=True):
                assert memory.address(ptr) % align == 0
                memory.view(ptr, 300)[:] = 1
            at_once(
                lambda: memory.tune([1030] * 50, 30), lambda: memory.tune([2050] * 50, 40), lambda: memory.tune([70, 700], 20)
            )
            assert_classes_are_apart(memory)
            for ptr in ptrs:
                memory.free(ptr, 300)
            memory.check()


@njit(nogil=True)
def realloc_in_kernel(memory, ptr, old, new):
    """Change a size without the GIL."""
    return memory.realloc(ptr, old, new)


@njit(nogil=True)
def free_in_kernel(memory, ptr, size):
    """Free without the GIL."""
    return memory.free(ptr, size)


@pytest.mark.parametrize("race", ["two frees", "free and realloc", "two reallocs", "realloc and view", "free and view"])
def test_one_of_two_has_large_memory(race):
    """Frees, reallocs and views of the same pages at the same instant: one wins, nothing is lost, nothing crashes."""

    def show(memory, ptr):
        view = memory.view(ptr, LARGE)
        view[::4096] = 1
        return view

    with SizeClasses("race") as memory:
        free_in_kernel(memory, realloc_in_kernel(memory, memory.allocate(LARGE), LARGE, 2 * LARGE), 2 * LARGE)

        def free(ptr):
            return lambda: free_in_kernel(memory, ptr, LARGE)

        def realloc(ptr, times):
            return lambda: realloc_in_kernel(memory, ptr, LARGE, times * LARGE)

        for _ in range(300):
            ptr = memory.allocate(LARGE)
            works = {
                "two frees": (free(ptr), free(ptr)),
                "free and realloc": (free(ptr), realloc(ptr, 30)),
                "two reallocs": (realloc(ptr, 20), realloc(ptr, 30)),
                "realloc and view": (realloc(ptr, 30), lambda ptr=ptr: show(memory, ptr)),
                "free and view": (free(ptr), lambda ptr=ptr: show(memory, ptr)),
            }
            answers = at_once(*works[race])
            if "view" not in race:
                assert sum(bool(answer) for answer in answers) == 1
            del answers
            left = memory.live().tolist()
            assert len(left) == len(memory) <= 1
            for ptr in left:
                assert any(free_in_kernel(memory, ptr, times * LARGE) for times in (1, 20, 30))
        gc.collect()
        assert int(memory._sizes_row["large_bytes"]) == 0
        memory.check()


@pytest.mark.parametrize("size", [100, 2_000_000, 0, -5])
def test_bytes_of_a_refused_ptr_are_scratch(size):
    """Whatever the size; what is no size has no bytes."""
    program = (
        "import numba, jitslab\n"
        "m = jitslab.SlabAllocator('m')\n"
        f"p = m.allocate({max(size, 1)}); m.free(p, {max(size, 1)})\n"
        "@numba.njit\n"
        "def use(m, p, size):\n"
        "    b = m.bytes(p, size)\n"
        "    for i in range(b.size): b[i] = 7\n"
        "    c = m.bytes(p, size)\n"
        "    return b.size, numba.int64(c.sum() if size < 1000 else 0)\n"
        f"print(use(m, p, {size}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, f"({max(size, 0)}, 0)\n")


@njit
def new_of(memory, size):
    """A ptr and its address; and its address again."""
    ptr, at = memory.new(size)
    return ptr, at, memory.address(ptr, size)


def test_new_gives_the_address_with_the_ptr(memory):
    """Of small and large memory; nothing of what is no size."""
    for size in (1, 100, 5000, LARGEST, LARGE):
        ptr, at, again = new_of(memory, size)
        assert at == again == memory.address(ptr)
        memory.free(ptr, size)
    for size in (0, -1, 1 << 60):
        assert new_of(memory, size) == (NULL, 0, 0)


def test_wrong_sizes_are_refused_in_compiled_code(memory):
    """Zero and negative ones, too, of small and of large memory."""
    for size in (1, 100, 1 << 20, LARGE):
        ptr = memory.allocate(size)
        for wrong in (0, -1, 5000, 3000, 1 << 40, (1 << 63) - 1, LARGE + 1):
            assert not free_in_kernel(memory, ptr, wrong)
        assert free_in_kernel(memory, ptr, size)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_numbers_of_numpy_are_sizes(memory, kind):
    """At their largest, too, where they would wrap: as ints are."""
    size = min(int(np.iinfo(kind).max), 1 << 22)
    ptr = memory.allocate(kind(size))
    memory.view(ptr, size)[:] = 1
    memory.free(np.int64(ptr), kind(size))
    with pytest.raises(jitslab.HandleError):
        memory.free(kind(1), 64)
    with pytest.raises(jitslab.SizeTypeError):
        memory.allocate(np.array([64, 64]))


# --- A model beside it ---


class Model(RuleBasedStateMachine):
    """Random use, beside a dictionary of what every ptr must hold."""

    nodes = None

    def __init__(self):
        super().__init__()
        self.memory = SizeClasses("model", nodes=self.nodes)
        self.held = {}
        self.stale = []
        self.count = 0

    def teardown(self):
        """Close."""
        self.memory.close()

    def mark(self, p, size):
        """Write to new memory."""
        self.count += 1
        data = np.random.default_rng(self.count).integers(0, 256, min(size, 64), np.uint8)
        self.memory.view(p, size)[: data.size] = data
        self.held[p] = size, data

    def pick(self, n):
        """Return one of the live ptrs."""
        return sorted(self.held)[n % len(self.held)] if self.held else None

    sizes = st.one_of(st.sampled_from(SIZES), st.integers(1, 3000))

    @rule(size=sizes, align=st.sampled_from([None, 1, 32, 256, 4096]), zero=st.booleans())
    def allocate(self, size, align, zero):
        """Any size, any alignment."""
        p = self.memory.allocate(size, align=align, zero=zero)
        assert p not in self.held
        if zero:
            assert not self.memory.view(p, size).any()
        self.mark(p, size)

    @rule(n=st.integers(0, 1000))
    def free(self, n):
        """Free one."""
        p = self.pick(n)
        if p is not None:
            self.memory.free(p, self.held.pop(p)[0])
            self.stale.append(p)

    @rule(n=st.integers(0, 1000), size=sizes)
    def realloc(self, n, size):
        """Keep the content."""
        p = self.pick(n)
        if p is not None:
            old, data = self.held.pop(p)
            q = self.memory.realloc(p, old, size)
            k = min(data.size, size)
            assert (self.memory.view(q, size)[:k] == data[:k]).all()
            if q != p:
                self.stale.append(p)
            self.mark(q, size)

    @rule(n=st.integers(0, 1000), size=sizes)
    def misuse(self, n, size):
        """Free what is free."""
        for p in self.stale[n % 7 :: 7]:
            if p not in self.held:
                with pytest.raises(jitslab.HandleError):
                    self.memory.free(p, size)

    @rule(sizes=st.lists(st.integers(1, 3000), max_size=20))
    def tune(self, sizes):
        """At any time."""
        if self.memory._sizes_row["n_rows"] < 150:
            table = self.memory.table
            try:
                self.memory.tune(sizes, 64)
            except jitslab.CacheFullError:
                assert self.nodes  # each class takes six times its slots
                assert table == self.memory.table

    @rule(node=st.integers(0, 2))
    def move(self, node):
        """From now on this thread runs on another node."""
        if self.nodes:
            run_on(self.memory, node)

    @rule()
    def shrink(self):
        """Give memory back."""
        self.memory.shrink()

    @invariant()
    def all_is_there(self):
        """Every byte written."""
        assert sorted(self.memory.live().tolist()) == sorted(self.held)
        for p, (size, data) in self.held.items():
            assert (self.memory.view(p, size)[: data.size] == data).all()


class ModelOnNodes(Model):
    """On three simulated NUMA nodes."""

    nodes = 3


TestModel, TestModelOnNodes = Model.TestCase, ModelOnNodes.TestCase
TestModel.settings = TestModelOnNodes.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)

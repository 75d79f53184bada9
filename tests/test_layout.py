"""Offsets and sizes as literals: a change of the layout must be seen in review."""

import numpy as np
import pytest

import jitslab
from jitslab._validate import own_copy
from jitslab.core import layout
from jitslab.core.geometry import geometry, record_stride
from jitslab.core.layout import CONTROL, HEAP, NODE, SLAB, STATE, ControlPointer, HeapPointer, SlabPointer

PAGE = 4096


def offsets(pointer):
    """Return where in a row each field stands."""
    return {name: offset for name, (offset, _) in pointer.fields.items()}


def test_sizes_of_rows():
    """Rows are whole lines; a slab's metadata is 64 bytes."""
    assert (HEAP.itemsize, SLAB.itemsize) == (128, 64)
    assert (CONTROL.itemsize, STATE.itemsize, NODE.itemsize) == (512, 256, 768)


def test_offsets_of_a_heap():
    """The owner word is first, where thread look-up finds it."""
    expected = {
        "owner": 0,
        "top": 8,
        "magazine_size": 16,
        "limit": 24,
        "generations": 32,
        "records": 40,
        "ptr_base": 48,
        "stride": 56,
        "control": 64,
        "slab": 72,
        "first_slot": 76,
        "pad": 80,
        "magazine": 128,
    }

    assert expected == offsets(HeapPointer)
    assert layout.MAGAZINE == 128
    assert layout.HEAP_BYTES // 64 % 2 == 1


def test_offsets_of_a_slab():
    """Sixteen 4-byte fields, eleven of them in use."""
    names = ("next", "prev", "list", "state", "n_free", "n_fresh", "rover")
    names += ("reserved_by", "min_generation", "has_remote_frees", "colour", "pad")

    assert {name: 4 * i for i, name in enumerate(names)} == offsets(SlabPointer)


def test_offsets_of_control():
    """What is written often lies on other lines than what is frozen."""
    at = offsets(ControlPointer)
    frozen = [at[name] for name in ControlPointer.frozen]

    assert [at[name] for name in ("heaps", "generations", "records")] == [0, 8, 16]
    assert all(offset % 8 == 0 for offset in at.values())
    assert at["local"] % 64 == 0
    assert len(frozen) == 34
    assert at["local"] > max(frozen)
    assert set(layout.names_of(layout.LOCAL)).isdisjoint(ControlPointer.frozen)


def test_constants():
    """What handles, states and lists are made of."""
    assert (jitslab.NULL, layout.NIL) == (0, -1)
    assert (layout.FREE, layout.PARTIALLY_USED, layout.FULL) == (0, 1, 2)
    assert layout.NOT_FREE == 0x80000001
    assert layout.MAX_SLOTS == 2**32


@pytest.mark.parametrize(
    ("itemsize", "stride", "slots", "rounds"),
    [
        (1, 1, 65536, 512),
        (8, 8, 8192, 512),
        (12, 12, 4096, 512),
        (64, 64, 1024, 512),
        (96, 96, 512, 512),
        (1000, 1000, 64, 262),
        (1024, 1088, 64, 240),
        (4096, 4160, 16, 63),
        (4104, 4104, 16, 63),
        (65536, 65600, 1, 3),
        (70000, 70000, 1, 3),
        (1 << 20, (1 << 20) + 64, 1, 1),
    ],
)
def test_geometry(itemsize, stride, slots, rounds):
    """Slots a slab: the power of two nearest to 64 KiB; a stride that aliases is one line longer; magazines by bytes."""
    sizes = geometry(np.dtype([("a", "u1", (itemsize,))]), 1000, True, PAGE)

    assert (itemsize, stride, slots, rounds) == (sizes.itemsize, sizes.stride, 1 << sizes.shift, sizes.magazine_size)
    assert sizes.slots >= 1000 + (layout.HEAPS - 1) * rounds


@pytest.mark.parametrize("itemsize", [1, 3, 24, 1024, 4096, 65536])
def test_stride_without_colouring_is_the_itemsize(itemsize):
    """Without colouring nothing is added."""
    assert itemsize == record_stride(np.dtype([("a", "u1", (itemsize,))]), False)


@pytest.mark.parametrize("n", [1, 100, 10**6, 10**9, 2**32])
def test_regions_do_not_overlap_and_metadata_is_small(n):
    """Regions follow one another on page borders; at most 8 bytes a slot and 64 a slab."""
    sizes = geometry(np.dtype([("a", "<i8", 8)]), n, True, PAGE)
    starts = list(sizes.offset.values())

    assert sorted(starts) == starts
    assert all(start % PAGE == 0 for start in starts)
    assert sizes.offset["generations"] - sizes.offset["bits"] >= sizes.slots // 8
    assert sizes.offset["records"] - sizes.offset["generations"] >= 4 * sizes.slots
    assert sizes.total - sizes.offset["records"] >= sizes.slots * sizes.stride
    per_slot = sizes.offset["records"] - sizes.offset["bits"] - 8 * PAGE
    assert per_slot <= 8 * sizes.slots
    assert sizes.offset["bits"] - sizes.offset["control"] <= 64 * sizes.max_slabs + 2 * PAGE


def test_alignment_of_the_dtype_is_kept():
    """Records of an aligned dtype are aligned, whatever the padding."""
    for align, field in ((1, "u1"), (2, "<i2"), (4, "<f4"), (8, "<f8"), (16, "g")):
        for n in (1, 3, 64, 100, 300, 1024):
            dtype = np.dtype([("a", field, (n,))], align=True)
            stride = record_stride(dtype, True)
            assert stride % min(align, dtype.alignment) == 0
            assert stride >= dtype.itemsize


INNER = np.dtype([("a", "f8"), ("b", "<i4", (3,))], align=True, metadata={"unit": 1})


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("x", "i8")]),
        np.dtype([("i", INNER), ("j", "u1")], align=True),
        np.dtype([("x", np.dtype("i8", metadata={"link": 1})), ("y", INNER, (2,))], metadata={"m": 2}),
        np.dtype([("x", ">i8"), ("s", "S5"), ("u", ">U3"), ("d", "<M8[ns]"), ("v", "V7")]),
        np.dtype({"names": ["b", "a"], "formats": [">i4", "f4"], "offsets": [8, 0], "itemsize": 40}),
        np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "titles": ["A", None]}),
        np.dtype([("i", [(("T", "t"), "i4")], (2,)), ("j", "u1")]),
    ],
    ids=["plain", "nested", "metadata", "formats", "offsets", "titles", "titles inside"],
)
def test_copy_of_a_dtype_is_the_same_and_another(dtype):
    """Fields, titles, order, alignment and metadata are kept, at any depth; its names are its own."""

    def assert_copied(old, new):
        assert (old, old.fields, old.metadata, old.flags) == (new, new.fields, new.metadata, new.flags)
        assert (old.alignment, old.isalignedstruct, old.str) == (new.alignment, new.isalignedstruct, new.str)
        if old.subdtype is not None:
            assert_copied(old.base, new.base)
        for name in old.names or ():
            assert_copied(old[name], new[name])
        assert old.names is None or old is not new

    copied = own_copy(dtype)

    assert_copied(dtype, copied)
    before = dtype.names
    copied.names = tuple("pqrst"[: len(before)])
    assert before == dtype.names

"""Laws broken on purpose and found by number; the index rebuilt from the generations; slabs given back and worn out."""

import numpy as np
import pytest
from inside import Inside

import jitslab
from jitslab.core import layout

KIB = np.dtype([("a", "<i8", 128)])  # 64 slots a slab


def full_cache(**options):
    """Return a cache with 1,000 records in 16 slabs, and their handles."""
    cache = jitslab.SlabCache("law", KIB, capacity=4096, colouring=False, **options)
    return cache, cache.alloc_many(1000)


# --- Slabs given back ---


def test_handles_of_a_released_slab_are_stale_and_never_come_back():
    """A slab that went back to the system restarts above every generation that it issued."""
    cache, handles = full_cache()
    cache.free_many(handles)

    assert cache.shrink() >= 15
    assert not any(handle in cache for handle in handles.tolist())
    with pytest.raises(jitslab.StaleHandleError, match="is free"):
        cache.free(int(handles[0]))

    again = cache.alloc_many(1000)

    assert not set(handles.tolist()) & set(again.tolist())
    assert (again >> 32).min() > (handles >> 32).max()
    with pytest.raises(jitslab.StaleHandleError):
        cache.free(int(handles[0]))
    cache.check()


@pytest.mark.parametrize("itemsize", [200, 5000, 70_000])
def test_release_between_live_slabs_leaves_them_alone(itemsize):
    """Slabs whose generations share a page with those of live ones go back without them."""
    cache = jitslab.SlabCache("between", [("a", "u1", itemsize)], capacity=4000)
    handles = cache.alloc_many(4000)
    page = (handles & 0xFFFFFFFF) // (1 << cache._memory.geometry.shift) % 8
    kept, freed = handles[page == 7], handles[page != 7]
    cache.records["a"][cache.slots(kept), 0] = 77
    cache.free_many(freed)
    cache.shrink()

    assert sorted(kept.tolist()) == sorted(cache.live().tolist())
    assert (cache.gather(kept)["a"][:, 0] == 77).all()
    assert all(handle in cache for handle in kept.tolist())
    cache.check()


# --- Laws broken on purpose ---


def slot_where(inside, wanted):
    """Return the first slot of which this is so."""
    return next(slot for slot in range(inside.generations.size) if wanted(slot))


def break_1_by_losing_a_slot(inside):
    """A free bit vanishes: the slot is nowhere."""
    slot = slot_where(inside, inside.is_free)
    inside.bits[slot >> 6] &= ~np.uint64(1 << (slot & 63))
    return slot


def break_1_by_two_magazine_places(inside):
    """A slot stands in a magazine twice."""
    row = next(row for row in inside.owned if inside.heap(row)["top"] > 1)
    inside.magazine(row)[0] = inside.magazine(row)[1]
    return int(inside.magazine(row)[1])


def break_1_by_bit_and_magazine(inside):
    """A slot in a magazine has its free bit set."""
    row = next(row for row in inside.owned if inside.heap(row)["top"] > 0)
    slot = int(inside.magazine(row)[0])
    inside.bits[slot >> 6] |= np.uint64(1 << (slot & 63))
    return slot


def break_2_by_a_fresh_count_that_is_negative(inside):
    """There are not fewer than 0 fresh slots."""
    inside.slabs[3]["n_fresh"] = -1
    return 3 * inside.slots


def break_2_by_a_fresh_count_beyond_the_slots(inside):
    """There are not more fresh slots than slots."""
    inside.slabs[3]["n_fresh"] = inside.slots + 1
    return 3 * inside.slots


def break_3_by_a_wrong_count_of_free_slots(inside):
    """The count says one more than the bits."""
    slot = slot_where(inside, inside.is_free)
    inside.slabs[slot // inside.slots]["n_free"] += 1
    return slot


def break_4_by_a_live_slot_with_a_free_bit(inside):
    """What is live is marked free."""
    slot = slot_where(inside, lambda slot: inside.generations[slot] & 1)
    inside.bits[slot >> 6] |= np.uint64(1 << (slot & 63))
    return slot


def break_4_by_a_live_word_in_a_magazine(inside):
    """A slot in a magazine has an odd generation."""
    row = next(row for row in inside.owned if inside.heap(row)["top"] > 0)
    slot = int(inside.magazine(row)[0])
    inside.generations[slot] += 1
    return slot


def break_5_by_a_fresh_word_above_the_base(inside):
    """A slot said to be fresh has a past that the slab does not know."""
    slot = slot_where(inside, inside.is_fresh)
    inside.generations[slot] = inside.slabs[slot // inside.slots]["min_generation"] + 2
    return slot


def break_6_by_a_wrong_state(inside):
    """A full slab says that it is partially used."""
    index = int(np.flatnonzero(inside.slabs["state"] == layout.FULL)[0])
    inside.slabs[index]["state"] = layout.PARTIALLY_USED
    return index * inside.slots


def break_7_by_a_wrong_link_back(inside):
    """A slab's neighbour is not its neighbour's neighbour."""
    index = int(np.flatnonzero(inside.slabs["list"] >= 0)[0])
    inside.slabs[index]["prev"] = 9
    return index * inside.slots


def break_7_by_a_wrong_list(inside):
    """A slab on one list says that it is on another."""
    index = int(np.flatnonzero(inside.slabs["state"] == layout.PARTIALLY_USED)[0])
    inside.slabs[index]["list"] = (inside.slabs[index]["list"] + 1) % layout.QUARTERS
    return index * inside.slots


def break_7_by_a_circle(inside):
    """A list that never ends is reported, not followed for ever."""
    index = int(np.flatnonzero(inside.slabs["list"] >= 0)[0])
    inside.slabs[index]["next"] = index
    return


def break_7_by_a_link_out_of_range(inside):
    """A link beyond the slabs is not followed."""
    inside.control["heads"][0] = 1 << 40
    return -1


def break_7_by_losing_a_slab(inside):
    """A slab with free slots is on no list."""
    inside.control["heads"][:] = -1
    inside.control["tails"][:] = -1
    return -1


def break_8_by_a_wrong_count_of_slots_out(inside):
    """The count of slots outside of the slab layer is off."""
    inside.control["used"] += 1
    return -1


def break_8_by_a_wrong_count_of_empty_slabs(inside):
    """The count of empty slabs is off."""
    inside.control["n_empty"] += 1
    return -1


def break_9_by_too_many_rounds(inside):
    """A magazine holds more than its rounds."""
    inside.heap(inside.owned[0])["top"] = layout.MAGAZINE_SLOTS + 1
    return -1


def break_9_by_rounds_below_zero(inside):
    """A magazine does not hold fewer than none."""
    inside.heap(inside.owned[0])["top"] = -1
    return -1


def break_9_by_a_slot_out_of_range(inside):
    """A magazine holds a slot that there is not."""
    row = next(row for row in inside.owned if inside.heap(row)["top"] > 0)
    inside.magazine(row)[0] = 0xFFFFFFF0
    return -1


CRIMES = [crime for name, crime in sorted(globals().items()) if name.startswith("break_")]


def used_cache():
    """Return a cache with full, partially used and empty slabs, and slots in the magazine; and its live handles."""
    cache, handles = full_cache()
    cache.free_many(handles[:100])
    cache.free_many(handles[128:320])
    for handle in handles[500:540].tolist():
        cache.free(handle)
    return cache, sorted(cache.live().tolist())


def test_every_law_is_broken_by_some_crime():
    """Each law of `layout` has a crime here, and none is forgotten when one is added."""
    numbers = {int(crime.__name__.split("_")[1]) for crime in CRIMES}

    assert set(range(1, 10)) == numbers == set(layout.LAWS)


@pytest.mark.parametrize("crime", CRIMES, ids=lambda crime: crime.__name__)
def test_broken_law_is_found_by_number_and_slab_and_repaired(crime):
    """`check` names the law and the slab; `recover` puts right what the generations determine, and nothing is lost."""
    cache, live = used_cache()
    cache.check()
    inside = Inside(cache)
    slot = crime(inside)
    law = int(crime.__name__.split("_")[1])

    with pytest.raises(jitslab.LawError) as caught:
        cache.check()

    slab = slot if slot in (None, -1) else slot // inside.slots
    assert law == caught.value.law
    assert slab in (None, caught.value.slab)
    where = f"in slab {caught.value.slab} " if caught.value.slab >= 0 else ""
    assert str(caught.value).startswith(f"law L{law} is broken {where}of cache 'law': ")

    if "live_word_in_a_magazine" in crime.__name__:  # to the generations this is a live record
        live = sorted(cache.live().tolist())
    cache.recover()
    cache.check()
    assert live == sorted(cache.live().tolist())
    assert len(live) == len(cache)
    rest = cache.alloc_many(cache.capacity - len(live))
    assert not set(rest.tolist()) & set(live)
    cache.check()


def test_recover_rebuilds_an_index_of_noise():
    """With every free bit, count, list and colour overwritten the live records are still what they were."""
    cache, live = used_cache()
    inside = Inside(cache)
    rng = np.random.default_rng(5)
    before = cache.gather(live).tobytes()
    inside.bits[:] = rng.integers(0, 1 << 63, inside.bits.size, np.uint64)
    for field in ("next", "prev", "list", "state", "n_free", "n_fresh", "rover", "reserved_by", "colour"):
        inside.slabs[field] = rng.integers(-(1 << 31), 1 << 31, inside.slabs.size)
    for field in ("heads", "tails", "n_empty", "least_empty", "used", "retired"):
        inside.control[field] = rng.integers(-(1 << 62), 1 << 62, inside.control[field].shape)
    cache.recover()

    cache.check()
    assert live == sorted(cache.live().tolist())
    assert before == cache.gather(live).tobytes()
    assert not set(cache.alloc_many(cache.capacity - len(live)).tolist()) & set(live)


# --- Slots that are worn out ---


def test_worn_slot_is_retired_and_the_capacity_kept():
    """A slot whose generation comes to its end is never handed out again; no handle recurs; all records still fit."""
    with jitslab.SlabCache("worn", KIB, capacity=5) as cache:
        h = cache.alloc()
        slot = h & 0xFFFFFFFF
        cache.free(h)
        inside = Inside(cache)
        inside.generations[slot] = 0x7FFFFFFC
        seen = set()
        for _ in range(10):
            h = cache.alloc()
            assert 0 < h < 1 << 62
            assert h not in seen
            seen.add(h)
            cache.free(h)

        assert sorted(h >> 32 for h in seen if h & 0xFFFFFFFF == slot) == [0x3FFFFFFE, 0x3FFFFFFF]
        assert inside.is_retired(slot)
        assert inside.control["retired"] == 1
        assert len(cache) == 0
        assert slot not in cache.slots(cache.alloc_many(5))
        for cycle in (0x3FFFFFFF, 0x40000000, 0x7FFFFFFF):
            assert cycle << 32 | slot not in cache
        cache.check()
        cache.recover()
        cache.check()
        assert len(cache) == 5


def test_worn_slots_by_the_batch_are_retired():
    """The same through the slab layer, with whole blocks worn out at once."""
    cache, handles = full_cache()
    slots = cache.slots(handles)
    cache.free_many(handles)
    Inside(cache).generations[slots] = 0x7FFFFFFE
    last = cache.alloc_many(4000)
    cache.free_many(last)
    again = cache.alloc_many(4096)

    assert not set(again.tolist()) & set(last.tolist())
    assert not set(cache.slots(again).tolist()) & {h & 0xFFFFFFFF for h in last.tolist() if h >> 32 == 0x3FFFFFFF}
    assert len(cache) == 4096
    cache.check()


def test_one_worn_slot_does_not_wear_out_its_slab():
    """A slab with a slot near its end stays as it is when memory goes back: else its other slots would end with it."""
    with jitslab.SlabCache("worn", KIB, capacity=64, colouring=False) as cache:
        for _ in range(60):
            h = cache.alloc()
            cache.free(h)
            Inside(cache).generations[h & 0xFFFFFFFF] = 0x7FFFFFFE
            cache.free(cache.alloc())
            cache.shrink()

        assert cache.slot_limit <= 20 * 64
        assert int(Inside(cache).control["retired"]) <= 60
        assert cache.alloc_many(64).size == 64
        cache.check()

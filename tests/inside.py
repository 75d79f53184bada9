"""The inside of a cache (its first node) as NumPy arrays, to look at its metadata and to break it on purpose."""

import numpy as np

from jitslab.core import layout
from jitslab.machine import numa


def fields_of(memory, node=0):
    """Return the fields of a node's CONTROL and STATE rows, by name: arrays that write through."""
    rows = [memory.control[part] for part in ("addresses", "geometry", "local")] + [memory.state]
    return {name: row[name][node : node + 1].reshape(row[name].shape[1:]) for row in rows for name in row.dtype.names}


class Inside:
    """CONTROL and STATE, slab rows, free bits, generations and heaps of one cache: views that write through."""

    def __init__(self, cache):
        self.cache = cache
        sizes = cache._memory.geometry
        self.slots = 1 << sizes.shift
        self.control = fields_of(cache._memory)
        memory = cache._memory.bytes if cache._memory._place is None else cache._memory._place.memory
        heaps, step = int(self.control["heaps"]) - int(memory.ctypes.data), int(self.control["heap_step"])
        self._heaps = np.ndarray((layout.HEAP_ROWS, layout.HEAP_BYTES), np.uint8, memory, heaps, (step, 1))

    def _region(self, name, dtype, n):
        at = int(self.control[name]) - int(self.cache._memory.bytes.ctypes.data)
        return self.cache._memory.bytes[at : at + n * np.dtype(dtype).itemsize].view(dtype)

    @property
    def slabs(self):
        """Rows of the slabs made so far."""
        n, memory = int(self.control["n_slabs"]), self.cache._memory.bytes
        at = int(self.control["slabs"]) - int(memory.ctypes.data)
        return np.ndarray((n,), layout.SLAB, memory, at, (-layout.SLAB.itemsize,))

    @property
    def bits(self):
        """Words of 64 free bits."""
        return self._region("bits", np.uint64, max(-(-self.cache.slot_limit // 64), 1))

    @property
    def generations(self):
        """Generations of the slots made so far."""
        return self._region("generations", np.uint32, self.cache.slot_limit)

    def run_on(self, node):
        """Have the cache take every CPU for one of this node."""
        at = self.cache._memory.geometry.offset["cpus"]
        self.cache._memory.bytes[at : at + numa.CPUS] = node

    def heap(self, row):
        """Return the record of a heap."""
        return self._heaps[row, : layout.HEAP.itemsize].view(layout.HEAP)[0]

    def magazine(self, row):
        """Return all the places of a heap's magazine."""
        return self._heaps[row, layout.MAGAZINE : layout.MAGAZINE + 4 * layout.MAGAZINE_SLOTS].view(np.uint32)

    @property
    def owned(self):
        """Rows of the heaps that a thread owns."""
        return [row for row in range(layout.HEAPS) if self.heap(row)["owner"] > 0]

    def is_free(self, slot):
        """Whether the slot's free bit is set."""
        return bool(self.bits[slot >> 6] >> np.uint64(slot & 63) & np.uint64(1))

    def is_fresh(self, slot):
        """Whether the slot was never handed out since its slab was made or released."""
        row = self.cache._row(slot // self.slots)
        n_fresh = int(row["n_fresh"])
        after = (slot % self.slots - int(row["colour"]) - (self.slots - n_fresh)) % self.slots
        return after < n_fresh

    def is_retired(self, slot):
        """Whether the slot will not be handed out again."""
        return int(self.generations[slot]) & 0x80000001 == 0x80000000

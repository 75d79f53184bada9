"""
The dumb model: a dict of handle -> bytes.

It knows nothing of slots, slabs or magazines; a real cache must look the same from outside.
"""


class Naive:
    """What a cache holds, as a dict, and the handles that must never be accepted again."""

    def __init__(self, capacity, itemsize, template=None):
        self.capacity, self.itemsize, self.template = capacity, itemsize, template
        self.records = {}
        self.stale, self.stale_set = [], set()

    def __len__(self):
        """Return the number of live records."""
        return len(self.records)

    def alloc(self, handle, content):
        """Note a new record and what it holds."""
        assert handle > 0
        assert handle not in self.records
        assert handle not in self.stale_set
        self.records[handle] = content

    def free(self, handle):
        """Note the end of a record."""
        del self.records[handle]
        self.stale.append(handle)
        self.stale_set.add(handle)

    def write(self, handle, content):
        """Note what a record holds now."""
        assert len(content) == self.itemsize
        self.records[handle] = content

    def clear(self):
        """Note the end of all records."""
        for handle in list(self.records):
            self.free(handle)

    def pick(self, number):
        """Return one live handle, or None."""
        return sorted(self.records)[number % len(self.records)] if self.records else None

    def pick_stale(self, number):
        """Return one handle that was freed, or None."""
        return self.stale[number % len(self.stale)] if self.stale else None

    def live(self):
        """Return the handles by slot, as a scan meets them."""
        return sorted(self.records, key=lambda handle: handle & 0xFFFFFFFF)

"""
Tests see one NUMA node, so that they can tell slots and slabs by number; test_nodes.py and tests/vm see more.

With ``--memory=file`` generations and records of every `SlabCache` with one node are mapped from files, as those of a pool are:

    TMPDIR=/dev/shm python -m pytest --memory=file tests

The files are in the directory for temporary files.
"""

import tempfile

import pytest

import jitslab.cache
from jitslab.core.memory import NewCacheMemory, first_cycle, reserve, serials
from jitslab.machine import numa
from jitslab.machine.addresses import PROT_NONE, PROT_READ, map_file, page_bytes, round_up
from jitslab.pool.format import CacheEntry, words_bytes
from jitslab.pool.memory import PoolCacheMemory


def pytest_addoption(parser):
    """Add the option for the memory of caches."""
    parser.addoption("--memory", choices=("anonymous", "file"), default="anonymous", help="where records of caches are")


def pytest_configure(config):
    """Make the mark of tests that hold for private memory alone known."""
    config.addinivalue_line("markers", "anonymous: looks at the layout of private memory, or at memory that goes back by itself")


def pytest_collection_modifyitems(config, items):
    """Leave out tests of private memory if there is none."""
    if config.getoption("--memory") == "file":
        for item in items:
            if item.get_closest_marker("anonymous"):
                item.add_marker(pytest.mark.skip(reason="of private memory"))


def file_memory(dtype, capacity, colouring, template, placement, place=None):
    """Return the memory of a cache, with generations and records mapped from files that nobody else has."""
    if place is not None or len(placement.nodes) > 1:
        return NewCacheMemory(dtype, capacity, colouring, template, placement, place)
    sizes, region = reserve(dtype, capacity, colouring, 1, None, has_spare=True)
    del region
    slots = sizes.max_slabs << sizes.shift
    entry = CacheEntry(
        0, "tested", sizes.stride, sizes.shift, min(sizes.capacity, slots), slots, bool(colouring), template, None, dtype
    )
    memory = PoolCacheMemory(entry, 2 * first_cycle(next(serials)), is_reader=False)
    lengths = words_bytes(slots), round_up(slots * sizes.stride, page_bytes)
    for at, n, prot in zip(memory.at, lengths, (PROT_READ, PROT_NONE), strict=True):
        with tempfile.TemporaryFile() as file:
            file.truncate(n)
            assert map_file(at, n, file.fileno(), prot) == 0
    memory.start_head(0)
    memory.set_field("interval_end", 0)
    memory.enter()
    return memory


@pytest.fixture(autouse=True, scope="session")
def one_node(request):
    """Have the library see the machine's first node alone, and put the records of caches where the command line says."""
    first = numa._machine()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numa, "_machine", lambda: first)
        if request.config.getoption("--memory") == "file":
            patch.setattr(jitslab.cache, "NewCacheMemory", file_memory)
        yield

"""The state machine, run for each kind of cache."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import CacheMachine

TEMPLATE = np.array((7, 9), [("a", "<i4"), ("b", "<i8")])[()]
KINDS = {
    "capacity of 3": {"capacity": 3},
    "1 byte": {"dtype": [("a", "u1")]},
    "12 bytes, packed": {"dtype": [("a", "<i4"), ("b", "<i8")], "init": TEMPLATE},
    "64 bytes": {"dtype": [("a", "<i8", 8)]},
    "64 bytes, zeroed": {"dtype": [("a", "<i8", 8)], "init": "zero"},
    "64 bytes, uncoloured": {"dtype": [("a", "<i8", 8)], "colouring": False},
    "one thread, exact": {"exact": True, "capacity": 20},
    "64 bytes, four nodes": {"nodes": 4},
    "64 bytes, two nodes, one thread, exact": {"nodes": 2, "exact": True, "capacity": 200, "init": "zero"},
    "5000 bytes": {"dtype": [("a", "u1", 5000)]},
    "70000 bytes, one slot a slab": {"dtype": [("a", "u1", 70000)], "capacity": 12, "init": "zero"},
}
HARDLY_ANYTHING = settings(
    print_blob=False,
    max_examples=30,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", KINDS)
def test_cache_looks_like_the_naive_one(kind):
    """Whatever is done to a cache, from several threads, it looks like a dict of records and keeps its laws."""
    values = dict(KINDS[kind])
    values["dtype"] = np.dtype(values.get("dtype", CacheMachine.dtype))
    machine = type("Machine", (CacheMachine,), values)

    run_state_machine_as_test(machine, settings=HARDLY_ANYTHING)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_differ_as_their_names_say(kind):
    """The table of kinds describes what it names."""
    values = KINDS[kind]
    size = np.dtype(values.get("dtype", CacheMachine.dtype)).itemsize

    assert not kind[0].isdigit() or int(kind.split()[0]) == size

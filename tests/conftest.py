"""Tests see one NUMA node, so that they can tell slots and slabs by number; test_nodes.py and tests/vm see more."""

import pytest

from jitslab.machine import numa


@pytest.fixture(autouse=True, scope="session")
def one_node():
    """Have the library see the machine's first node alone."""
    first = numa._machine()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numa, "_machine", lambda: first)
        yield

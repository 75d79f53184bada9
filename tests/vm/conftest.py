"""Keeps the ordinary run of the tests out of this directory: what stands here is for the machine that run.py makes."""

import os

import pytest

collect_ignore_glob = [] if "JITSLAB_VM" in os.environ else ["*.py"]


@pytest.fixture(autouse=True, scope="session")
def one_node():
    """Here the library sees all nodes."""

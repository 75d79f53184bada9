"""What NUMA costs: the local policy on this machine, and array sets for four simulated nodes, beside a cache of one set."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import jitslab
import loops
import measure
from bench_alloc import churn_of_cache, pair_of_cache
from measure import Row, Sizes, Table, ratio

LIVE = 10_000


def table(sizes: Sizes) -> Table:
    """Return all operations."""
    home = jitslab.nodes()[0].id
    kinds: dict[str, dict[str, Any]] = {
        "one node": {"policy": home},
        "local": {"policy": "local"},
        "four simulated nodes": {"nodes": 4},
    }
    figures = (ratio("local", "one node", 1.03), ratio("four simulated nodes", "one node"))
    return {
        "pair by policy": Row({k: partial(pair_of_cache, loops.pair, **v) for k, v in kinds.items()}, figures),
        f"churn {LIVE:,} by policy": Row({k: partial(churn_of_cache, loops.churn, LIVE, **v) for k, v in kinds.items()}, figures),
    }


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_answer_is_right(operation: str, contender: str) -> None:
    """Every contender does what the row says."""
    measure.check_answer(table, operation, contender)


@pytest.mark.parametrize(("operation", "contender"), measure.names(table))
def test_speed(benchmark: Any, operation: str, contender: str) -> None:
    """Time of every contender; for ratios, see run.py."""
    measure.speed(benchmark, table, operation, contender)

"""What NUMA costs: the local policy on this machine, and four simulated nodes, beside a cache with one node."""

from __future__ import annotations

from functools import partial
from typing import Any

import jitslab
from bench_alloc import churn, pair
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
        "pair by policy": Row({k: partial(pair, "cache", **v) for k, v in kinds.items()}, figures),
        f"churn {LIVE:,} by policy": Row({k: partial(churn, "cache", LIVE, **v) for k, v in kinds.items()}, figures),
    }

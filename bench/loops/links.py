"""Links in plain arrays: the least that a loop must do which follows them, or looks for dangling ones."""

from __future__ import annotations

from functools import partial

import numba

njit = partial(numba.njit, cache=True, nogil=True)
SLOT_MASK = 0xFFFFFFFF


@njit
def dangling(links, generations, live):
    """Count the links of live records that lead to none: `links` has a row of handles a slot, `generations` a number."""
    n = 0
    for i in range(live.size):
        row = live[i] & SLOT_MASK
        for k in range(links.shape[1]):
            h = links[row, k]
            n += h != 0 and generations[h & SLOT_MASK] != h >> 31 | 1
    return n


@njit
def walk(links, root, seen, stack):
    """Count what links lead to from a root: every link is trusted, no record is looked at again."""
    n, top = 0, 1
    stack[0] = root & SLOT_MASK
    seen[stack[0]] = True
    while top > 0:
        top -= 1
        at = stack[top]
        n += 1
        for k in range(links.shape[1]):
            h = links[at, k]
            slot = h & SLOT_MASK
            if h != 0 and not seen[slot]:
                seen[slot] = True
                stack[top] = slot
                top += 1
    return n

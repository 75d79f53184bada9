"""What Numba users do without records of their own: typed.List, typed.Dict, and an array of one record from `np.empty`."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
from numba import types
from numba.typed import Dict as TypedDict
from numba.typed import List as TypedList

from loops.on_objects import Heap  # noqa: F401  # Numba's own
from loops.workload import BIRTH, CANCEL, CHILD, DEATH, DIGEST_MASK, FACTOR, INSERT, LOOKUP, PARTICLE, PRICES, STEP, TURNS

njit = partial(numba.njit, cache=True, nogil=True)
integer = types.int64
four = types.UniTuple(types.int64, 4)


# --- Hash table ---


@njit
def table_of_lists(buckets, operations, keys):
    """Do all operations on a typed.List of chains, each a typed.List of (key, value): their answer."""
    chains = TypedList()
    for _ in range(buckets):
        chain = TypedList()
        chain.append((integer(0), integer(0)))
        chain.pop()
        chains.append(chain)
    answer = 0
    for i in range(keys.size):
        key, operation = keys[i], operations[i]
        chain = chains[key & (buckets - 1)]
        at = 0
        while at < len(chain) and chain[at][0] != key:
            at += 1
        found = at < len(chain)
        if operation == LOOKUP:
            answer += chain[at][1] if found else 1
        elif operation == INSERT:
            if found:
                chain[at] = (key, i)
            else:
                chain.append((key, i))
        elif found:
            answer += 3 * chain[at][1]
            last = chain.pop()
            if at < len(chain):
                chain[at] = last
        else:
            answer += 3
    for chain in chains:
        answer += len(chain)
    return answer


@njit
def table_of_dict(operations, keys):
    """Do all operations on a typed.Dict: their answer."""
    known = TypedDict.empty(integer, integer)
    answer = 0
    for i in range(keys.size):
        key, operation = keys[i], operations[i]
        if operation == LOOKUP:
            answer += known.get(key, 1)
        elif operation == INSERT:
            known[key] = i
        else:
            answer += 3 * known.pop(key, 1)
    return answer + len(known)


# --- Order book: what is left of each order in a typed.Dict, its number in a typed.List for each price ---


@njit
def book(firsts, tops, kinds, levels, quantities):
    """Match all messages: the answer.  A cancelled order leaves its queue when its turn comes."""
    orders = TypedDict.empty(integer, integer)
    queues = TypedList()
    for _ in range(2 * PRICES):
        queues.append(TypedList.empty_list(integer))
    digest, cancelled = 0, 0
    for number in range(kinds.size):
        side, level = kinds[number], levels[number]
        if side == CANCEL:
            if level in orders:
                del orders[level]
                cancelled += 1
            continue
        other, left = 1 - side, quantities[number]
        while left > 0:
            top, first = tops[other], -1
            while top >= 0:
                at = other * PRICES + top
                queue = queues[at]
                while firsts[at] < len(queue) and queue[firsts[at]] not in orders:
                    firsts[at] += 1
                if firsts[at] < len(queue):
                    first = queue[firsts[at]]
                    break
                queue.clear()
                firsts[at] = 0
                top -= 1
            tops[other] = top
            if top < 0 or top + level < PRICES - 1:
                break
            there = orders[first]
            traded = min(left, there)
            left -= traded
            digest = (digest * 31 + first * 7 + traded) & DIGEST_MASK
            if traded == there:
                del orders[first]
            else:
                orders[first] = there - traded
        if left > 0:
            orders[number] = left
            queues[side * PRICES + level].append(number)
            tops[side] = max(tops[side], level)
    rest = 0
    for left in orders.values():
        rest += left
    return digest + cancelled + rest


# --- Bank of particles ---


@njit
def bank_of_list(n):
    """Let particles live, tuples in a typed.List, the last moved to where one dies: the answer."""
    particles = TypedList.empty_list(four)
    for i in range(n):
        particles.append((i, i % 7 - 3, i * FACTOR, -1))
    for turn in range(TURNS):
        i = 0
        while i < len(particles):
            x, speed, seed, born = particles[i]
            if born != turn:
                seed = seed * FACTOR + STEP
                x += speed
                draw = seed >> 33 & 1023
                if draw < DEATH:
                    last = particles.pop()
                    if i < len(particles):
                        particles[i] = last
                    continue
                particles[i] = (x, speed, seed, born)
                if draw < BIRTH:
                    particles.append((x, -speed, seed ^ CHILD, turn))
            i += 1
    s = 0
    for x, _speed, _seed, _born in particles:
        s += x
    return s + (len(particles) << 32)


@njit
def bank_of_dict(n):
    """Let particles live, tuples in a typed.Dict by number: the answer."""
    particles = TypedDict.empty(integer, four)
    for i in range(n):
        particles[i] = (i, i % 7 - 3, i * FACTOR, -1)
    following = n
    for turn in range(TURNS):
        numbers = np.empty(len(particles), np.int64)
        for i, number in enumerate(particles):  # a dict must not change while it is iterated
            numbers[i] = number
        for number in numbers:
            x, speed, seed, born = particles[number]
            seed = seed * FACTOR + STEP
            x += speed
            draw = seed >> 33 & 1023
            if draw < DEATH:
                del particles[number]
                continue
            particles[number] = (x, speed, seed, born)
            if draw < BIRTH:
                particles[following] = (x, -speed, seed ^ CHILD, turn)
                following += 1
    s = 0
    for x, _speed, _seed, _born in particles.values():
        s += x
    return s + (len(particles) << 32)


@njit
def one(x, speed, seed, born):
    """Return a particle, an array of one record."""
    particle = np.empty(1, PARTICLE)
    particle[0].x = x
    particle[0].speed = speed
    particle[0].seed = seed
    particle[0].born = born
    return particle


@njit
def bank_of_arrays(n):
    """Let particles live, arrays of one record in a typed.List, the last moved to where one dies: the answer."""
    particles = TypedList()
    for i in range(n):
        particles.append(one(i, i % 7 - 3, i * FACTOR, -1))
    for turn in range(TURNS):
        i = 0
        while i < len(particles):
            particle = particles[i][0]
            if particle.born != turn:
                seed = particle.seed * FACTOR + STEP
                particle.seed = seed
                particle.x += particle.speed
                draw = seed >> 33 & 1023
                if draw < DEATH:
                    last = particles.pop()
                    if i < len(particles):
                        particles[i] = last
                    continue
                if draw < BIRTH:
                    particles.append(one(particle.x, -particle.speed, seed ^ CHILD, turn))
            i += 1
    s = 0
    for particle in particles:
        s += particle[0].x
    return s + (len(particles) << 32)


# --- From Python ---

TAKES = {"table_of_lists": ("buckets",), "book": ("first", "tops")}

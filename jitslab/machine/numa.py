"""
The NUMA nodes of the machine, and the placement of a cache's memory on them.

`nodes` reads the topology from the system.  `resolve` turns a user's wish (a policy) into a `Placement`; a cache's memory asks
the system for it by `bind`.  On a machine with one node a placement asks for nothing and costs nothing.

A cache with the policy "local" is divided into nodes of its own, one for each NUMA node that has CPUs (`core.layout`, section
7).  Any other cache is one node.

Sources: Linux, Documentation/admin-guide/mm/numa_memory_policy.rst; mbind(2); set_mempolicy(2).
"""

from __future__ import annotations

import difflib
import operator
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import NodeError, PlacementWarning, shown
from . import addresses
from .addresses import round_up

CPUS = 4096  # CPUs whose node is known; a thread on a later one draws from the first node
MAX_NODES = 64
ROOT = Path("/sys/devices/system/node")
POLICIES = ("local", "interleave")


@dataclass(frozen=True)
class NumaNode:
    """
    A NUMA node of the machine that this process may use.

    Attributes
    ----------
    id : int
        The system's number of it.
    cpus : tuple of int
        Its CPUs; none: the node is memory only.
    memory : int
        Bytes of memory; 0: the node has CPUs only.
    distances : dict of int to int
        Distance to each node, as the firmware states it; 10: to itself.

    Examples
    --------
    >>> import jitslab
    >>> home = jitslab.nodes()[0]
    >>> home.memory > 0, len(home.cpus) > 0
    (True, True)
    """

    id: int
    cpus: tuple[int, ...]
    memory: int
    distances: dict[int, int] = field(hash=False)


@dataclass(frozen=True)
class Placement:
    """The nodes of a cache, and the NUMA nodes for the memory of each."""

    nodes: tuple[int, ...]  # by node of the cache: the NUMA node that its memory lies on
    mode: int = addresses.MPOL_DEFAULT  # of mbind(2); MPOL_DEFAULT: the system is not asked
    interleaved: tuple[int, ...] = ()  # NUMA nodes that the pages of a cache with one node take turns on
    cpu_nodes: bytes = b""  # by CPU: the node of the cache that its threads draw from, u1[CPUS]; empty: there is one node

    @property
    def is_simulated(self) -> bool:
        """Whether the nodes are simulated: the machine does not have them."""
        return len(self.nodes) > 1 and self.mode == addresses.MPOL_DEFAULT

    def undivided(self) -> Placement:
        """Return the placement with one node; each page lies on the NUMA node of the thread that first writes to it."""
        return Placement(self.nodes[:1])

    def nodes_of(self, number: int) -> tuple[int, ...]:
        """Return the NUMA nodes that the memory of node `number` shall lie on."""
        return self.interleaved or (self.nodes[number],)


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers in a list of the system, such as ``0-3,8``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def nodes(root: Path = ROOT) -> tuple[NumaNode, ...]:
    """
    Return the NUMA nodes that this process may use, by number.

    Reads ``/sys/devices/system/node`` and the allowed nodes (cpusets) of ``/proc/self/status``.  If the system has no such files,
    or they cannot be read, the answer is one node with every CPU.

    Examples
    --------
    >>> import jitslab
    >>> [node.id for node in jitslab.nodes()][0]
    0
    """
    try:
        found = _read(root)
    except (OSError, ValueError):
        found = ()
    if found:
        return found
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1
    return (NumaNode(0, tuple(range(os.cpu_count() or 1)), memory, {0: 10}),)


def _read(root: Path) -> tuple[NumaNode, ...]:
    """Return the nodes that this process may use, as the files of the system list them."""
    found = []
    allowed = _allowed()
    for directory in sorted(root.glob("node[0-9]*"), key=lambda d: int(d.name[4:])):
        number = int(directory.name[4:])
        if allowed is None or number in allowed:
            cpus = parse_list((directory / "cpulist").read_text())
            words = (directory / "meminfo").read_text().split()
            memory = int(words[words.index("MemTotal:") + 1]) << 10
            distances = (directory / "distance").read_text().split()
            online = parse_list((root / "online").read_text())
            found.append(NumaNode(number, cpus, memory, dict(zip(online, map(int, distances), strict=False))))
    return tuple(found)


def _allowed() -> tuple[int, ...] | None:
    """Return the nodes whose memory this process may use; None: the system does not say."""
    if not addresses.LINUX:
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Mems_allowed_list:"):
            return parse_list(line.partition(":")[2])
    return None


@lru_cache(maxsize=1)
def _machine() -> tuple[NumaNode, ...]:
    """Return the nodes with memory, read once: otherwise each new cache would read a dozen files."""
    return tuple(node for node in nodes() if node.memory > 0)


def resolve(policy: Any, strict: Any, simulated: Any) -> Placement:
    """
    Turn a policy into a placement.

    Parameters
    ----------
    policy : {"local", "interleave"}, int or iterable of int
        As `SlabCache` takes it.
    strict : bool
        Whether a page must lie on its node; if not, another node serves when that one is full.
    simulated : int or None
        How many nodes to simulate; their memory is not placed.

    Raises
    ------
    NodeError
        If the policy is not valid, or a node cannot be used.
    """
    wish = _as_policy(policy)
    if not isinstance(strict, bool):
        raise NodeError(f"strict is True or False, got {shown(strict)}")
    if strict and (wish == "interleave" or (isinstance(wish, tuple) and len(wish) > 1)):
        raise NodeError("strict goes with 'local' or one node: pages in turn on several have no strict form")
    if simulated is not None:
        return _simulate(wish, simulated)
    machine = _machine()
    if isinstance(wish, tuple):
        for number in wish:
            _check_node(number, machine)
    if len(machine) == 1:
        return _on(machine[0].id)
    if wish == "local":
        return _place_locally(machine, addresses.MPOL_BIND if strict else addresses.MPOL_PREFERRED)
    chosen = tuple(node.id for node in machine) if wish == "interleave" else wish
    if len(chosen) == 1:
        return Placement((int(chosen[0]),), addresses.MPOL_BIND if strict else addresses.MPOL_PREFERRED)
    return Placement((int(chosen[0]),), addresses.MPOL_INTERLEAVE, tuple(map(int, chosen)))


def _as_policy(policy: Any) -> str | tuple[int, ...]:
    """Return a policy as one of POLICIES or as node numbers."""
    if isinstance(policy, str):
        if policy in POLICIES:
            return policy
        near = difflib.get_close_matches(policy, POLICIES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NodeError(f"a policy is 'local', 'interleave', a node or several, got {policy!r}{hint}")
    try:
        numbers = tuple(operator.index(n) for n in (policy if isinstance(policy, Iterable) else (policy,)))
    except TypeError:
        raise NodeError(f"a policy is 'local', 'interleave', a node or several, got {shown(policy)}") from None
    if isinstance(policy, bool) or not numbers or len(set(numbers)) < len(numbers):
        raise NodeError(f"a policy is 'local', 'interleave', a node or several, got {shown(policy)}")
    return numbers


def _check_node(number: int, machine: tuple[NumaNode, ...]) -> None:
    """Raise unless a node can be used."""
    if any(node.id == number for node in machine):
        return
    usable = ", ".join(str(node.id) for node in machine)
    why = "has no memory" if any(node.id == number for node in nodes()) else "does not exist, or is not allowed to this process"
    raise NodeError(f"node {shown(number)} {why}; usable: {usable}")


@lru_cache(maxsize=8)
def _on(node: int) -> Placement:
    """Return the placement with one node, of which the system is not asked: the same object for all such caches."""
    return Placement((node,))


def _place_locally(machine: tuple[NumaNode, ...], mode: int) -> Placement:
    """Return a placement with one node for each NUMA node with CPUs; CPUs without memory of their own get the nearest."""
    chosen = tuple(node.id for node in machine if node.cpus)[:MAX_NODES]
    if len(chosen) < 2:
        return Placement(chosen or (machine[0].id,))
    number_of_cpu = bytearray(CPUS)
    for node in nodes():
        nearest = min(range(len(chosen)), key=lambda k: (node.distances.get(chosen[k], 255), k))
        for cpu in node.cpus:
            if cpu < CPUS:
                number_of_cpu[cpu] = nearest
    return Placement(chosen, mode, (), bytes(number_of_cpu))


def _simulate(wish: str | tuple[int, ...], simulated: Any) -> Placement:
    """Return a placement with simulated nodes; the CPUs are dealt out to them in turn."""
    try:
        count = operator.index(simulated)
    except TypeError:
        count = 0
    if not 1 <= count <= MAX_NODES or isinstance(simulated, bool):
        raise NodeError(f"nodes must be 1 .. {MAX_NODES} simulated nodes, or None for the machine's, got {shown(simulated)}")
    if isinstance(wish, tuple):
        for number in wish:
            if not 0 <= number < count:
                raise NodeError(f"node {shown(number)} is none of the {count} simulated ones")
    if wish != "local" or count == 1:
        return Placement((wish[0] if isinstance(wish, tuple) else 0,))
    return Placement(tuple(range(count)), cpu_nodes=bytes(cpu % count for cpu in range(CPUS)))


_refused: set[int] = set()


def bind(address: int, n: int, placement: Placement, number: int) -> None:
    """Ask the system to place the pages of n bytes from an address for node `number`; warn once for each refusal."""
    if placement.mode == addresses.MPOL_DEFAULT:
        return
    start = address // addresses.page_bytes * addresses.page_bytes
    end = round_up(address + n, addresses.page_bytes)
    refusal = addresses.bind_memory(start, end - start, placement.mode, placement.nodes_of(number))
    if refusal and refusal not in _refused:
        _refused.add(refusal)
        warnings.warn(
            f"the system refuses to place memory on NUMA nodes {placement.nodes_of(number)}: {os.strerror(refusal)}; "
            "caches go on without",
            PlacementWarning,
            stacklevel=2,
        )

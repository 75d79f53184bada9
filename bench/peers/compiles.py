"""
The program whose use of malloc is recorded: Python itself, where two threads parse and compile modules of its library.

Run by `traces`, under foreign/record.c and with PYTHONMALLOC=malloc, until as many events are noted as were wanted.  Each thread
parses a module and hands its tree on; who takes it compiles it and drops it, so much is freed by the other thread.
"""

from __future__ import annotations

import ast
import ctypes
import itertools
import queue
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

MODULES = 120  # of the library, the smallest first; again and again
Tree = ast.Module | None  # None: there are no more


def work(sources: Iterator[str], given: queue.SimpleQueue[Tree], taken: queue.SimpleQueue[Tree]) -> None:
    """Parse a module for the other thread, compile one of it, until the record is full."""
    record = ctypes.CDLL(None)
    while not record.record_is_full():
        given.put(ast.parse(next(sources)))
        tree = taken.get()
        if tree is None:
            break
        compile(tree, "module", "exec")
    given.put(None)


def main() -> None:
    """Run two threads, and note what they do."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: (path.stat().st_size, path.name))
    sources = itertools.cycle([path.read_text(errors="replace") for path in paths[:MODULES]])
    one: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    other: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    threads = [threading.Thread(target=work, args=(sources, *queues)) for queues in ((one, other), (other, one))]
    ctypes.CDLL(None).record_begin()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

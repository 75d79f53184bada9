"""
Rows beside C allocators: each allocator is the `malloc` of a process of its own; a cache is measured in the same process.

As a script (`python -m peers.process SIZE MODULE`): the rows of a module beside the process's own `malloc`, as JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from typing import Any

import measure
from peers import allocators


def run_with(allocator: str, size: str, module: str) -> list[dict[str, Any]]:
    """Return the rows beside malloc of a module of bench, measured in a new process that has the allocator as its `malloc`."""
    command = [sys.executable, "-m", "peers.process", size, module]
    done = subprocess.run(command, env=allocators.environment(allocator), stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout)
    allocators.check(allocator, answer["malloc"])
    return [named(row, allocator) for row in answer["rows"]]


def named(row: dict[str, Any], allocator: str) -> dict[str, Any]:
    """Return a row with the allocator's name wherever it says "malloc"."""
    row = json.loads(json.dumps(row).replace("malloc /", f"{allocator} /").replace('"malloc"', f'"{allocator}"'))
    return row | {"operation": f"{row['operation']}, beside {allocator}"}


def main(size: str, name: str) -> None:
    """Measure the rows of a module; one that has more to tell of a row than its times measures them itself."""
    assert threading.active_count() == 1
    module, sizes = importlib.import_module(name), measure.SIZES[size]
    if hasattr(module, "rows"):
        rows = list(module.rows(sizes))
    else:
        table = module.beside_malloc(sizes).items()
        rows = [measure.measure(operation, row, sizes).as_json() for operation, row in table]
    sys.stdout.write(json.dumps({"malloc": allocators.serving(), "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])

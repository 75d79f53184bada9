"""The machine that a result was measured on: what matters to its times, and nothing that names the machine."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

import jitslab

CPU = Path("/sys/devices/system/cpu")
CACHES = CPU / "cpu0" / "cache"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def first_line(path: Path) -> str:
    """Return the first line of a file, "" where the system has none."""
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""


def cpu() -> str:
    """Return the model of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def caches() -> list[str]:
    """Return the CPU's caches, nearest first: level, kind, size."""
    levels = sorted(CACHES.glob("index*")) if CACHES.exists() else []
    return [" ".join([f"L{first_line(i / 'level')}", first_line(i / "type").lower(), first_line(i / "size")]) for i in levels]


def chosen(path: Path) -> str:
    """Return what stands in brackets in a file of choices."""
    found = re.search(r"\[(\w+)\]", first_line(path))
    return found[1] if found else "unknown"


def memory_gib() -> float:
    """GiB of memory, as far as the system tells."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def describe() -> dict[str, Any]:
    """Describe the machine and its load now."""
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches(),
        "memory_gib": memory_gib(),
        "numa_nodes": len(jitslab.nodes()),
        "governor": first_line(CPU / "cpu0" / "cpufreq" / "scaling_governor") or "unknown",
        "huge_pages": chosen(HUGE_PAGES),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release().partition("-")[0],
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        "numpy": np.__version__,
        "jitslab": jitslab.__version__,
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }

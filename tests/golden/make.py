#!/usr/bin/env python3
"""
Make the pool of format 1 that tests read for ever: tests/golden/pool-1.tar.xz.

    python tests/golden/make.py OUT.tar.xz

It has been made once.  A later format gets an archive of its own; this one stays as it is.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import jitslab

INNER = np.dtype([("x", "<f4"), ("to", jitslab.link("nodes"), (2,))])
EVERYTHING = np.dtype(
    {
        "names": ["flag", "small", "big", "half", "pair", "when", "span", "bytes", "text", "void", "grid", "inner", "back"],
        "formats": [
            "?", "<i2", ">u8", "<f2", "<c16", "<M8[ms]", "<m8[s]", "S5", "<U3", "V4", ("<i4", (2, 3)), (INNER, (2,)),
            jitslab.link("everything"),
        ],
        "offsets": [0, 2, 8, 16, 24, 40, 48, 56, 64, 76, 80, 104, 160],
        "titles": ["a title", *[None] * 12],
        "itemsize": 176,
    }
)  # fmt: skip
NODE = np.dtype([("value", "<f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "<i8")])


def record(k):
    """Return the record number k of the cache that has every kind of field."""
    it = np.zeros((), EVERYTHING)
    it["flag"], it["small"], it["big"], it["half"], it["pair"] = k & 1, -k, (1 << 63) + k, k / 2, complex(k, -k)
    it["when"], it["span"], it["bytes"], it["text"], it["void"] = (
        1_700_000_000_000 + k,
        k,
        b"b%d" % k,
        f"\u00e9{k}",
        bytes([k] * 4),
    )
    it["grid"], it["inner"]["x"] = np.arange(6).reshape(2, 3) * k, k
    return it


def fill(pool):
    """Fill a pool: records in the data files, and later ones in the journal; freed and rolled back ones."""
    nodes = pool.create_cache("nodes", NODE, capacity=1000, init=(1.5, 0))
    everything = pool.create_cache("everything", EVERYTHING, capacity=100, colouring=False)
    for k in range(60):
        pool.root["head"] = nodes.alloc(value=float(k), next=pool.root["head"])
    everything.extend([record(k).item() for k in range(8)])
    pool.commit()
    pool.checkpoint()
    nodes.free_many(nodes.live()[10:20])
    pool.root["n"] = 7
    pool.commit()
    nodes.alloc_many(30)
    pool.rollback()
    everything.free(int(everything.live()[3]))
    pool.commit()


def main(out):
    """Write the archive."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool-1"
        with jitslab.open_pool(path, "x", root=ROOT) as pool:
            fill(pool)
        (path / "writer.lock").write_bytes(b"")  # it names a program and a machine
        with tarfile.open(out, "w:xz") as archive:
            for file in sorted(path.iterdir()):
                entry = tarfile.TarInfo(f"pool-1/{file.name}")
                entry.size, entry.mode = file.stat().st_size, 0o600
                with file.open("rb") as content:
                    archive.addfile(entry, content)


if __name__ == "__main__":
    main(sys.argv[1])

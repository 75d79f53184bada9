"""
Make the pool that every later version must read, and pack it into ``pool-1.npz`` beside this file; or unpack it.

    python tests/golden/make.py FOLDER

makes the pool anew, which is right for a new format alone, under a new name.  A file of the archive is its length and the pieces
of it that are not zeros.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import jitslab

ARCHIVE = Path(__file__).parent / "pool-1.npz"
BLOCK = 4096

INNER = np.dtype([("x", "<f4"), ("to", jitslab.link("nodes"))])
KINDS = np.dtype(
    [
        ("bool", "?"),
        ("i1", "i1"),
        ("i2", "<i2"),
        ("i4_big", ">i4"),
        ("i8", "<i8"),
        ("u1", "u1"),
        ("u2_big", ">u2"),
        ("u4", "<u4"),
        ("u8", "<u8"),
        ("f2", "<f2"),
        ("f4", "<f4"),
        ("f8_big", ">f8"),
        ("c8", "<c8"),
        ("c16", "<c16"),
        ("when", "<M8[us]"),
        ("long", "<m8[s]"),
        ("bytes", "S7"),
        ("text", "<U3"),
        ("raw", "V5"),
        ("array", "<i2", (2, 3)),
        ("inner", INNER),
        ("inners", INNER, (2,)),
        (("a title", "titled"), "<i4"),
    ]
)
ALIGNED = np.dtype([("flag", "u1"), ("value", "<f8"), ("back", jitslab.link("kinds"))], align=True)
NODE = np.dtype([("value", "<i8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "<i4")])
TEMPLATE = (3, 2.5, 0)


def kind_of(i: int, handle: int) -> np.ndarray:
    """Return record number i of all kinds, with links to a node."""
    record = np.zeros((), KINDS)
    for name in KINDS.names:
        dtype = KINDS[name].base
        if dtype.kind in "biuf":
            record[name] = i % 2 if dtype.kind == "b" else i + 1
        elif dtype.kind == "c":
            record[name] = complex(i, -i)
        elif dtype.kind == "M":
            record[name] = np.datetime64("2020-02-29T12:00:00") + np.timedelta64(i, "D")
        elif dtype.kind == "m":
            record[name] = -i
        elif dtype.kind in "SU":
            record[name] = f"{i}é"[: KINDS[name].itemsize] if dtype.kind == "U" else f"{i}b"
    record["raw"] = np.void(bytes([i, 0, 255, 1, i]))
    record["array"] = np.arange(6).reshape(2, 3) * i
    for inner in (record["inner"], *record["inners"]):
        inner["x"], inner["to"] = i / 4, handle
    return record


def make(path: str) -> dict[str, np.ndarray]:
    """Make the pool; returns what it must hold, by name: handles and records of each cache, and handles that are refused."""
    expected = {}
    with jitslab.open_pool(path, "x", root=ROOT) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=1000)
        kinds = pool.create_cache("kinds", KINDS, capacity=10, colouring=False)
        aligned = pool.create_cache("aligned", ALIGNED, capacity=100, init=TEMPLATE)
        gone = pool.create_cache("gone", NODE, capacity=10)
        handles, head = [], 0
        for i in range(600):
            head = nodes.alloc(value=i, next=head)
            handles.append(head)
        of_kinds = [kinds.alloc() for _ in range(5)]
        for i, handle in enumerate(of_kinds):
            kinds[handle] = kind_of(i, handles[i])
        pool.root["head"], pool.root["n"] = head, 600
        gone.alloc(value=1)
        pool.commit()
        assert pool.checkpoint()
        # From here on the journal has it.
        nodes.free_many(handles[100:150])
        for i in range(150, 200):
            nodes[handles[i]]["value"] = -i
        of_aligned = [aligned.alloc() for _ in range(3)]
        aligned[of_aligned[1]]["back"] = of_kinds[1]
        gone.alloc(value=2)
        pool.commit()
        pool.drop_cache("gone")
        undone = nodes.alloc_many(30, value=99)
        nodes.free(handles[0])
        pool.rollback()
        kinds.free(of_kinds[4])
        pool.root["n"] = 550
        pool.commit()
        refused = [*handles[100:150], *undone.tolist()]
        for cache in (nodes, kinds, aligned):
            live = cache.live()
            expected[f"{cache.name} handles"] = live
            expected[f"{cache.name} records"] = np.frombuffer(cache.gather(live).tobytes(), "u1")
        expected["root"] = np.frombuffer(pool.root.tobytes(), "u1")
        expected["refused"] = np.array(refused)
        expected["number"] = np.array(pool.number)
    return expected


def pack(path: str, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the files of a pool as arrays, with what it must hold."""
    arrays = {f"expected {name}": value for name, value in expected.items()}
    for name in sorted(os.listdir(path)):
        data = (Path(path) / name).read_bytes()
        blocks = np.frombuffer(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"), "u1").reshape(-1, BLOCK)
        used = np.flatnonzero(blocks.any(1))
        arrays |= {f"{name} length": np.array(len(data)), f"{name} used": used, f"{name} blocks": blocks[used]}
    return arrays


def unpack(path: str) -> dict[str, np.ndarray]:
    """Write the files of the archive into a new folder; returns what they hold."""
    os.mkdir(path, 0o700)
    with np.load(ARCHIVE) as archive:
        for name in (key[: -len(" length")] for key in archive if key.endswith(" length")):
            with open(Path(path) / name, "wb") as file:
                for k, block in zip(archive[f"{name} used"].tolist(), archive[f"{name} blocks"], strict=True):
                    file.seek(k * BLOCK)
                    file.write(block.tobytes())
                file.truncate(int(archive[f"{name} length"]))
            os.chmod(Path(path) / name, 0o600)
        return {key[len("expected ") :]: archive[key] for key in archive if key.startswith("expected ")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(Path(sys.argv[1]) / ARCHIVE.name, **pack(f"{folder}/pool", make(f"{folder}/pool")))

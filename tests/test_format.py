"""
What a pool's own files may say: `pool.json`, dtypes as JSON, the head of a file of words.

Laws: what is written is read as it was; what is not right is refused by name, and nothing else happens, whatever the bytes are.
"""

import itertools
import json
import random
import sys
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program import run_python
from test_dtypes import rational

import jitslab
from jitslab import CapacityError, DuplicateNameError, LayoutError, SlabError
from jitslab.errors import CorruptPoolError, PoolVersionError
from jitslab.pool import format as form
from jitslab.pool.format import CacheEntry, Meta, check_words_head, decode, describe, encode, rebuild_dtype, words_head

NODE = np.dtype([("value", ">f8"), ("next", jitslab.link("nodes")), ("tags", "S3", (2,))])  # 22 bytes
POINT = np.dtype([("x", "f8"), ("id", "i4")], align=True)  # 16 bytes


def entry(**changes):
    """The entry of a small cache, or with other values."""
    known = {
        "id": 1,
        "name": "nodes",
        "stride": 24,
        "shift": 11,
        "capacity": 1000,
        "slots": 4096,
        "colouring": True,
        "template": None,
        "class_name": None,
        "dtype": NODE,
    }
    return CacheEntry(**known | changes)


def meta(**changes):
    """The meta of a pool of two caches, or with other values."""
    point = entry(id=4, name="points of é", stride=16, dtype=POINT, template=bytes(range(16)), class_name="Point")
    known = {"id": 0xC0FFEE00C0FFEE, "next": 5, "root": 4, "caches": (entry(), point)}
    return Meta(**known | changes)


def sealed(body):
    """The bytes of a `pool.json` with this body, or the JSON of this object, whose first line is true."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return b"jitslab-pool 1 little %08x %d\n" % (zlib.crc32(body), len(body)) + body


def body_of(data):
    """What follows the first line."""
    return data[data.index(b"\n") + 1 :]


def loaded(made=None):
    """The object of a `pool.json`, to be changed."""
    return json.loads(body_of(encode(made or meta())))


def at(value, path):
    """The value at the end of a path of keys."""
    for key in path:
        value = value[key]
    return value


def changed(path, value):
    """A `pool.json` with one value replaced."""
    tree = loaded()
    *way, last = path
    at(tree, way)[last] = value
    return sealed(tree)


def without(path):
    """A `pool.json` with one value left out."""
    tree = loaded()
    *way, last = path
    del at(tree, way)[last]
    return sealed(tree)


# --- What is written, to the byte ---

GOLDEN = (
    b"jitslab-pool 1 little 4d9a2c2b 832\n"
    b'{"caches":[{"capacity":1000,"class":null,"colouring":true,"dtype":{"aligned":false,"fields":[["value",null,0,[],null,">f8"]'
    b',["next",null,8,[],"nodes","<i8"],["tags",null,16,[2],null,"|S3"]],"itemsize":22,"record":false},"id":1,"name":"nodes",'
    b'"shift":11,"slots":4096,"stride":24,"template":null},\n'
    b'{"capacity":1000,"class":"Point","colouring":true,"dtype":{"aligned":true,"fields":[["x",null,0,[],null,"<f8"],'
    b'["id",null,8,[],null,"<i4"]],"itemsize":16,"record":false},"id":4,"name":"points of \\u00e9","shift":11,"slots":4096,'
    b'"stride":16,"template":"000102030405060708090a0b0c0d0e0f"}],"id":"00c0ffee00c0ffee","next":5,"root":4}\n'
)


def test_format_1_is_as_it_was():
    """A pool that was written once can be read for ever."""
    assert GOLDEN == encode(meta())
    assert meta() == decode(GOLDEN, "pool.json")
    assert {("next",): "nodes"} == jitslab.links_of(decode(GOLDEN, "pool.json").caches[0].dtype)


def test_what_is_decoded_is_encoded_alike():
    """Nothing is lost that the comparison of two dtypes passes over."""
    assert GOLDEN == encode(decode(GOLDEN, "pool.json"))


def test_json_of_another_writer_is_read():
    """Blanks, the order of keys and UTF-8 are its own affair."""
    tree = dict(reversed(loaded().items()))
    body = json.dumps(tree, indent=2, ensure_ascii=False).encode()

    assert "é".encode() in body
    assert meta() == decode(sealed(body), "pool.json")


def test_names_of_files_and_constants():
    """A change of format must be seen in review."""
    assert (1, 4096, 2048, 0, 1) == (form.FORMAT, form.BLOCK, form.WORDS_OFFSET, form.WORDS, form.RECORDS)
    assert ("pool.json", "journal", "writer.lock", "reader.lock") == (
        form.META,
        form.JOURNAL,
        form.WRITER_LOCK,
        form.READER_LOCK,
    )
    assert ("7.words", "7.records", "7.sums") == (form.words_name(7), form.records_name(7), form.sums_name(7))


def test_lengths_of_data_files():
    """Whole grains of 64 KiB, with room for the head and for what kernels read beyond the last word."""
    most = 65_536 - 2048 - 256

    assert [65_536, 65_536, 131_072] == [form.words_bytes(slots) for slots in (1, most // 4, most // 4 + 1)]
    assert (1 << 34) + 65_536 == form.words_bytes(1 << 32)
    assert [65_536, 65_536, 131_072] == [form.records_bytes(slots, 64) for slots in (1, 1024, 1025)]
    assert 1 << 46 == form.records_bytes(1 << 32, 1 << 14)


# --- The first line, and the text behind it ---

LINES = {  # what changes the bytes, which error, what it says
    "empty": (lambda d: b"", CorruptPoolError, "it must begin with 'jitslab-pool', a format and a byte order, got b''"),
    "foreign": (
        lambda d: b"\x89PNG\r\n\x1a\n" + d,
        CorruptPoolError,
        "it must begin with 'jitslab-pool', a format and a byte order, got b'\\x89PNG\\r\\n...l 1 little 4d'",
    ),
    "format 0": (lambda d: d.replace(b" 1 ", b" 0 ", 1), CorruptPoolError, "it must begin with 'jitslab-pool', a format and a"),
    "format -1": (lambda d: d.replace(b" 1 ", b" -1 ", 1), CorruptPoolError, "it must begin with 'jitslab-pool', a format and a"),
    "format 10 digits": (lambda d: d.replace(b" 1 ", b" 1234567890 ", 1), CorruptPoolError, "it must begin with"),
    "format 2": (
        lambda d: d.replace(b" 1 ", b" 2 ", 1),
        PoolVersionError,
        "its format is 2, this jitslab knows 1; open the pool with a newer jitslab",
    ),
    "format 999999999, other form": (
        lambda d: b"jitslab-pool 999999999 little\n{}",
        PoolVersionError,
        "its format is 999999999, this jitslab knows 1; open the pool with a newer jitslab",
    ),
    "big-endian": (
        lambda d: d.replace(b"little", b"big", 1),
        PoolVersionError,
        "it was written in the byte order big-endian, pools are little-endian",
    ),
    "middle-endian": (lambda d: d.replace(b"little", b"middle", 1), CorruptPoolError, "it must begin with 'jitslab-pool'"),
    "no checksum": (
        lambda d: b"jitslab-pool 1 little\n" + body_of(d),
        CorruptPoolError,
        "its first line must end with a checksum and a length, got b'jitslab-pool 1 little\\n{",
    ),
    "checksum in capitals": (
        lambda d: b"jitslab-pool 1 little 4D9A2C2B 832\n" + body_of(d),
        CorruptPoolError,
        "its first line must end with a checksum and a length",
    ),
    "length of 9 digits": (
        lambda d: b"jitslab-pool 1 little 4d9a2c2b 100000000\n" + body_of(d),
        CorruptPoolError,
        "its first line must end with a checksum and a length",
    ),
    "cut": (lambda d: d[:-1], CorruptPoolError, "832 bytes should follow its first line, 831 do"),
    "longer": (lambda d: d + b" ", CorruptPoolError, "832 bytes should follow its first line, 833 do"),
    "a byte changed": (
        lambda d: d.replace(b"nodes", b"nodez", 1),
        CorruptPoolError,
        "its checksum is 0b8e2ab3, it should be 4d9a2c2b",
    ),
    "too long": (lambda d: d + bytes(16 << 20), CorruptPoolError, "it has 16778083 bytes, at most 16777216 can be"),
    "no JSON": (lambda d: sealed(b"{]"), CorruptPoolError, "no JSON: Expecting property name"),
    "JSON and more": (lambda d: sealed(body_of(d) + b"{}"), CorruptPoolError, "no JSON: Extra data: line 3 column 1"),
    "no UTF-8": (lambda d: sealed(b'{"\xff":1}'), CorruptPoolError, "no JSON: 'utf-8' codec can't decode byte 0xff"),
    "UTF-16": (lambda d: sealed("{}".encode("utf-16")), CorruptPoolError, "no JSON: 'utf-8' codec can't decode byte 0xff"),
    "byte order mark": (lambda d: sealed(b"\xef\xbb\xbf{}"), CorruptPoolError, "no JSON: Unexpected UTF-8 BOM"),
    "zeros": (lambda d: sealed(bytes(64)), CorruptPoolError, "no JSON: Expecting value"),
    "an array": (lambda d: sealed([]), CorruptPoolError, "the pool must be an object, got []"),
    "key twice": (lambda d: sealed(b'{"id":1,"id":1}'), CorruptPoolError, "the key 'id' is there twice"),
    "key twice, escaped": (lambda d: sealed(rb'{"id":1,"\u0069d":1}'), CorruptPoolError, "the key 'id' is there twice"),
    "NaN": (lambda d: sealed(b'{"id":NaN}'), CorruptPoolError, "'NaN' is no integer"),
    "Infinity": (lambda d: sealed(b'{"id":-Infinity}'), CorruptPoolError, "'-Infinity' is no integer"),
    "float": (lambda d: sealed(b'{"id":1.0}'), CorruptPoolError, "'1.0' is no integer"),
    "exponent": (lambda d: sealed(b'{"id":1e400}'), CorruptPoolError, "'1e400' is no integer"),
    "21 digits": (lambda d: sealed(b'{"id":%s}' % (b"1" * 21)), CorruptPoolError, "a number has 21 digits, at most 20 can be"),
    "5,000 digits": (lambda d: sealed(b"1" * 5000), CorruptPoolError, "a number has 5000 digits, at most 20 can be"),
    "deep": (lambda d: sealed(b"[" * 53), CorruptPoolError, "its brackets are nested 53 deep, at most 52 can be"),
    "deep, in objects": (lambda d: sealed(b'{"a":' * 53), CorruptPoolError, "its brackets are nested 53 deep, at most 52 can be"),
    "deep, behind a quote": (lambda d: sealed(rb'["\\",' + b"[" * 52), CorruptPoolError, "its brackets are nested 53 deep"),
    "not so deep": (lambda d: sealed(b"[" * 52), CorruptPoolError, "no JSON: Expecting value"),
    "deep in a text": (
        lambda d: sealed(rb'"\"\\\"%s"' % (b"[" * 99)),
        CorruptPoolError,
        'the pool must be an object, got \'"\\\\"[[[',
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_text_that_is_none_is_refused(what):
    """The message names the file, the place and what is there."""
    change, error, message = LINES[what]

    with pytest.raises(error) as caught:
        decode(change(GOLDEN), "/here/pool.json")
    assert str(caught.value).startswith(f"/here/pool.json: {message}")


def test_message_of_a_wrong_byte_is_exact():
    """One of each class, whole."""
    with pytest.raises(CorruptPoolError) as caught:
        decode(changed(["caches", 1, "stride"], 17), "book/pool.json")
    assert str(caught.value) == "book/pool.json: caches[1]: stride must be a multiple of 8, the alignment of the dtype, got 17"


def test_big_endian_machine_is_told(monkeypatch):
    """It neither reads nor writes pools."""
    made = meta()
    monkeypatch.setattr(sys, "byteorder", "big")

    for refused in (lambda: encode(made), lambda: decode(GOLDEN, "pool.json"), lambda: words_head(1, entry(), 0, 2)):
        with pytest.raises(PoolVersionError, match="^pool.json: pools are little-endian, and this machine is not$"):
            refused()


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.text('[]{}"\\a', max_size=8),
        lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text('"\\]', max_size=3), of, max_size=3),
        max_leaves=20,
    )
)
def test_depth_is_that_of_the_brackets_outside_of_texts(value):
    """As counted on the object; a limit one below refuses it."""

    def depth(of):
        inner = of.values() if isinstance(of, dict) else of if isinstance(of, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "MOST_DEPTH", depth(value))
        form.check_depth(body)
        patch.setattr(form, "MOST_DEPTH", depth(value) - 1)
        with pytest.raises(CorruptPoolError, match=f"nested {depth(value)} deep"):
            form.check_depth(body)


def test_deep_text_ends_no_process_that_allows_deep_calls():
    """The parser, which calls itself, never sees it."""
    program = (
        "import sys, zlib\n"
        "from jitslab.errors import CorruptPoolError\n"
        "from jitslab.pool.format import decode\n"
        "sys.setrecursionlimit(1 << 30)\n"
        "for body in (b'[' * 4_000_000, b'{\"a\":' * 2_000_000, b'[{\"a\":' * 1_000_000):\n"
        "    try:\n"
        "        decode(b'jitslab-pool 1 little %08x %d\\n' % (zlib.crc32(body), len(body)) + body, 'pool.json')\n"
        "    except CorruptPoolError:\n"
        "        print('refused')\n"
    )
    assert run_python(program) == "refused\n" * 3


BOMBS = {  # a mebibyte each
    "lists": b"[" + b"[]," * 350_000 + b"[]]",
    "objects": b"[" + b"{}," * 350_000 + b"{}]",
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(100_000)) + b"}",
    "texts": b"[" + b'"ab",' * 200_000 + b"0]",
    "one text": b'"' + b"a" * 1_000_000 + b'"',
    "escapes": b'"' + b"\\\\" * 500_000 + b'"',
    "wide characters": b'"' + b"\\u20ac" * 170_000 + b'"',
    "quotes": b'"' * 1_000_000,
    "digits": b"1" * 1_000_000,
    "fraction": b"0." + b"1" * 1_000_000,
    "exponent": b"1e" + b"9" * 1_000_000,
    "open": b"[" * 1_000_000,
    "open and closed": b"[]" * 500_000,
    "caches": b'{"id":"%016d","next":1,"root":null,"caches":[' % 1 + b"{}," * 65_535 + b"{}]}",
    "caches that are too many": b'{"id":"%016d","next":1,"root":null,"caches":[' % 1 + b"0," * 400_000 + b"0]}",
}


@pytest.mark.parametrize("what", BOMBS)
def test_memory_is_bounded_by_the_length(what):
    """Less than 100 bytes for one of the file; none of these is a pool."""
    data = sealed(BOMBS[what])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPoolError):
            decode(data, "pool.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 100 * len(data)


# --- Values of pool.json ---

U8, U4 = (1 << 64) - 1, (1 << 32) - 1
FOREIGN = (None, True, "1", [], {}, -1)  # no integer that counts something
VALUES = {  # path: values that are refused, and what the message says
    ("id",): (
        (0, None, "", "0" * 15, "0" * 17, "0" * 15 + "F", "0" * 15 + "٣", " " * 16),
        "id must be 16 hexadecimal digits, got",
    ),
    ("next",): ((*FOREIGN, U4 + 2), "next must be an integer of 0 .. 4294967296, got"),
    ("root",): ((True, "1", [], {}, -1, 0, 2, 5), "root must be the id of a cache, got"),
    ("caches",): ((None, 1, "", {}, [0] * 65_537), "caches must be a list of at most 65536, got"),
    ("caches", 0): ((None, 1, "", []), "caches[0]: the cache must be an object, got"),
    ("caches", 0, "id"): ((*FOREIGN, U4 + 1, 1 << 80), "caches[0]: "),
    ("caches", 1, "id"): ((1, 5, 6), "caches[1]: id must be below 5 and no other's, got"),
    ("caches", 0, "name"): (
        (None, 1, [], "", "a\n", "\0", "\ud800", "x" * 256),
        "caches[0]: name must be 1 .. 255 printable characters",
    ),
    ("caches", 1, "name"): ((" a", "a ", "a#2"), "caches[1]: the name of a cache is printable, without '#' and without blanks"),
    ("caches", 0, "stride"): (
        (*FOREIGN, 0, 21, (1 << 34) + 1, U8),
        "caches[0]: stride must be an integer of 22 .. 17179869184, got",
    ),
    ("caches", 1, "stride"): ((17, 20, 31), "caches[1]: stride must be a multiple of 8, the alignment of the dtype, got"),
    ("caches", 0, "shift"): ((*FOREIGN, 17, U8), "caches[0]: shift must be an integer of 0 .. 16, got"),
    ("caches", 0, "capacity"): ((*FOREIGN, 0, 4097, U8), "caches[0]: capacity must be an integer of 1 .. 4096, got"),
    ("caches", 0, "slots"): ((*FOREIGN, 0, U4 + 2, U8), "caches[0]: slots must be an integer of 1 .. 4294967296, got"),
    ("caches", 1, "slots"): ((1, 2047, 4095, 4097), "caches[1]: slots must be a multiple of the 2048 of a slab, got"),
    ("caches", 0, "colouring"): ((None, 0, 1, "true", []), "caches[0]: colouring must be true or false, got"),
    ("caches", 1, "template"): (
        (1, [], "0", "0g" * 16, " " + "00" * 16, "AA" * 16),
        "caches[1]: template must be null or hexadecimal, got",
    ),
    ("caches", 0, "template"): (("", "00" * 21, "00" * 23), "caches[0]: template must be a record of 22 bytes, got"),
    ("caches", 0, "class"): ((1, [], "", "a\x1b[0m", "x" * 256), "caches[0]: class must be 1 .. 255 printable characters, got"),
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, (values, _) in VALUES.items() for value in values], ids=lambda it: str(it)[:40]
)
def test_value_out_of_bounds_is_refused(path, value):
    """Each value of a file that no pool wrote, by its place."""
    with pytest.raises(CorruptPoolError) as caught:
        decode(changed(path, value), "pool.json")
    assert str(caught.value).startswith(f"pool.json: {VALUES[path][1]}")


GOOD = {  # the least and the largest of each
    ("id",): ("0" * 16, "f" * 16),
    ("next",): (5, 1 << 32),
    ("root",): (None, 1, 4),
    ("caches", 0, "id"): (0, 2, 3),
    ("caches", 0, "name"): ("n", "é" * 255, "a b", "../../etc/passwd", "€\U0001f600"),
    ("caches", 0, "stride"): (22, 23, 1 << 34),
    ("caches", 1, "stride"): (16, 24),
    ("caches", 0, "shift"): (0, 12),
    ("caches", 0, "capacity"): (1, 4096),
    ("caches", 0, "slots"): (2048, (1 << 46) // 24 >> 11 << 11 & 0xFFFFFFFF, 1 << 32),
    ("caches", 0, "colouring"): (True, False),
    ("caches", 0, "template"): (None, "fe" * 22),
    ("caches", 0, "class"): (None, "K", "K" * 255),
}


@pytest.mark.parametrize("path", GOOD)
def test_value_at_its_bound_is_read(path):
    """And is in the object that comes back."""
    for value in GOOD[path]:
        read = decode(changed(path, value), "pool.json")
        assert value == at(loaded(read), path)


@pytest.mark.parametrize("path", [(key,) for key in form.META_KEYS] + [("caches", 0, key) for key in form.ENTRY_KEYS])
def test_missing_key_is_named(path):
    """Of the pool and of a cache."""
    what = "the pool" if len(path) == 1 else "caches[0]: the cache"

    with pytest.raises(CorruptPoolError, match=rf"^pool.json: {what} has no {path[-1]!r}$".replace("[0]", r"\[0\]")):
        decode(without(path), "pool.json")


@pytest.mark.parametrize("path", [(), ("caches", 1), ("caches", 1, "dtype")])
def test_foreign_key_is_refused(path):
    """Format 1 has no more than these: a later one says so in the first line."""
    with pytest.raises(CorruptPoolError, match="has a foreign 'more'|a dtype has aligned, fields, itemsize, record, got"):
        decode(changed([*path, "more"], 1), "pool.json")


def test_names_and_ids_of_caches_differ():
    """By the class that says so to whoever makes the second."""
    with pytest.raises(DuplicateNameError, match="^there is a cache 'nodes' already$"):
        meta(caches=(entry(), entry(id=2)), root=None)
    with pytest.raises(CapacityError, match=r"^caches\[1\]: id must be below 5 and no other's, got 1$"):
        meta(caches=(entry(), entry(name="b")), root=None)


def test_numbers_of_a_cache_hold_together():
    """Records of a cache are at most 64 TiB, whatever the factors."""
    entry(slots=1 << 32, stride=1 << 14)
    with pytest.raises(CapacityError, match="^stride must be an integer of 22 .. 16384, got 16385$"):
        entry(slots=1 << 32, stride=(1 << 14) + 1)
    with pytest.raises(CapacityError, match="^capacity must be an integer of 1 .. 4096, got 1000.0$"):
        entry(capacity=1000.0)


def test_pool_holds_65_536_caches():
    """And refuses one more."""
    first = entry(id=0, name="0")
    caches = tuple(replace(first, id=i, name=str(i)) for i in range(65_537))

    assert 65_536 == len(meta(next=65_537, root=None, caches=caches[1:]).caches)
    with pytest.raises(CapacityError, match="^a pool holds at most 65536 caches, got 65537$"):
        meta(next=65_537, root=None, caches=caches)


def test_list_of_caches_that_is_too_long_is_not_written():
    """Else no one could read it again."""
    large = np.dtype([("all", "S4194304")])
    caches = tuple(entry(id=i, name=str(i), stride=1 << 22, dtype=large, template=bytes(1 << 22)) for i in (0, 1))
    encode(meta(root=None, caches=caches[:1]))

    with pytest.raises(CapacityError, match="^the list of 2 caches would be 16777[0-9]* bytes, a pool has 16777216$"):
        encode(meta(root=None, caches=caches))

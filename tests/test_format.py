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

import jitslab
from jitslab import CapacityError, DuplicateNameError, LayoutError, SlabError, descriptor
from jitslab.descriptor import describe, rebuild_dtype
from jitslab.errors import CorruptPoolError, PoolVersionError
from jitslab.pool import format as form
from jitslab.pool.format import CacheEntry, Meta, check_words_head, decode, encode, words_head

try:
    from numpy._core._rational_tests import rational  # a dtype that a user registered, as NumPy's own tests have it
except ImportError:  # NumPy 1
    from numpy.core._rational_tests import rational

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
    b"jitslab-pool 1 little d264c2f4 626\n"
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
        "it must begin with 'jitslab-pool', a format and a byte order, got b'\\x89PNG\\r\\n...l 1 little d2'",
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
        'its first line must end with a checksum and a length, got b\'{"caches":[{"capacit',
    ),
    "checksum in capitals": (
        lambda d: b"jitslab-pool 1 little D264C2F4 626\n" + body_of(d),
        CorruptPoolError,
        "its first line must end with a checksum and a length",
    ),
    "length of 9 digits": (
        lambda d: b"jitslab-pool 1 little d264c2f4 100000000\n" + body_of(d),
        CorruptPoolError,
        "its first line must end with a checksum and a length",
    ),
    "cut": (lambda d: d[:-1], CorruptPoolError, "626 bytes should follow its first line, 625 do"),
    "longer": (lambda d: d + b" ", CorruptPoolError, "626 bytes should follow its first line, 627 do"),
    "a byte changed": (
        lambda d: d.replace(b"nodes", b"nodez", 1),
        CorruptPoolError,
        "its checksum is 808107a8, it should be d264c2f4",
    ),
    "too long": (lambda d: d + bytes(16 << 20), CorruptPoolError, "it has 16777877 bytes, at most 16777216 can be"),
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

    for refused in (lambda: encode(made), lambda: decode(GOLDEN, "pool.json")):
        with pytest.raises(PoolVersionError, match="^pool.json: pools are little-endian, and this machine is not$"):
            refused()


@settings(max_examples=200, deadline=None, derandomize=True)
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
    ("caches", 0, "id"): ((*FOREIGN, U4 + 1, U8), "caches[0]: id must be an integer of 0 .. 4294967295, got"),
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


# --- Dtypes ---


def layers(*of, levels):
    """A record in as many records."""
    made = np.dtype(list(of))
    for _ in range(levels - 1):
        made = np.dtype([("in", made)])
    return made


def spread(names, formats, offsets, itemsize, **options):
    """A dtype with offsets of its own."""
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize, **options})


DESCRIBED = {
    "every kind": np.dtype(
        [
            (t, t)
            for t in (
                "?",
                "i1",
                "i2",
                ">i4",
                "i8",
                "u1",
                ">u2",
                "u4",
                "u8",
                "f2",
                "f4",
                ">f8",
                "c8",
                ">c16",
                "S5",
                "U5",
                ">U6",
                "V7",
            )
        ]
    ),
    "long doubles": np.dtype([("a", "g"), ("b", ">g"), ("c", "G", (2,))]),
    "dates": np.dtype([("a", "M8[ns]"), ("b", ">m8[25s]"), ("c", "M8"), ("d", "m8[1000ms]"), ("e", "M8[2000000000Y]")]),
    "nothing in fields": np.dtype([("a", "S"), ("b", "U"), ("c", "V"), ("d", []), ("e", "i4", (0, 3)), ("f", "i1")]),
    "no fields": spread([], [], [], 8),
    "gaps and another order": spread(["b", "a"], ["i4", "i2"], [8, 1], 30),
    "aligned": np.dtype([("a", "i1"), ("b", "i8"), ("c", "i2")], align=True),
    "aligned in packed": np.dtype([("a", "i1"), ("b", np.dtype([("a", "i1"), ("b", "i8")], align=True), (2,))]),
    "aligned, and longer": spread(["a"], ["i8"], [8], 32, titles=[None]),
    "sub-arrays": np.dtype([("a", "i2", (2, 3)), ("b", [("c", "f4", (1,))], (2, 1))]),
    "titles": np.dtype([(("The first", "a"), "i4"), (("", "b"), [(("é", "c"), "i8")]), ("d", "i1")]),
    "no name": spread([""], ["i4"], [0], 4),
    "strange names": np.dtype([("a\0\n", "i4"), ("\U0001f600", "i4"), ('"\\[{', "i4"), (" " * 300, "i4")]),
    "links": np.dtype([("a", jitslab.link("x")), ("b", jitslab.link("y\n" * 500).newbyteorder(">"), (2, 2)), ("c", NODE, (3,))]),
    "numpy.record": np.dtype((np.record, [("a", np.dtype((np.record, POINT))), ("b", POINT)])),
    "16 levels": layers(("a", "i8"), levels=16),
    "4,096 fields": np.dtype([("a", [(f"f{i}", "i1") for i in range(4093)]), ("b", [("c", "i1")])]),
    "32 dimensions": np.dtype([("a", "i1", (1,) * 32)]),
    "2 GiB - 1": np.dtype([("a", "S2147483646"), ("b", "i1")]),
    "2 GiB - 1, few fields": spread(["a"], ["i1"], [(1 << 31) - 2], (1 << 31) - 1),
}


def facts(dtype):
    """All that is to come back of a dtype, told without the code that is tested."""
    if dtype.subdtype is not None:
        return dtype.shape, facts(dtype.base)
    if dtype.names is None:
        return dtype.str, dtype.kind, dict(dtype.metadata or {})
    fields = [(name, facts(dtype.fields[name][0]), *dtype.fields[name][1:]) for name in dtype.names]
    return dtype.itemsize, dtype.alignment, dtype.isalignedstruct, dtype.type, fields


@pytest.mark.parametrize("what", DESCRIBED)
def test_dtype_comes_back(what):
    """By way of JSON, with all that a record needs."""
    dtype = DESCRIBED[what]
    read = rebuild_dtype(json.loads(json.dumps(describe(dtype))))

    assert dtype == read
    assert facts(dtype) == facts(read)
    assert jitslab.links_of(dtype) == jitslab.links_of(read)


def test_declared_class_is_described_by_its_dtype():
    """As wherever a dtype is taken."""

    @jitslab.record
    class Pixel:
        at: jitslab.u4
        colour: jitslab.u1

    assert describe(np.dtype(Pixel)) == describe(Pixel)
    assert [["at", None, 0, [], None, "<u4"], ["colour", None, 4, [], None, "|u1"]] == describe(Pixel)["fields"]


def test_metadata_but_links_is_left_out():
    """It may be anything; two dtypes that differ only in it are one to a pool."""
    user = np.dtype("i8", metadata={"of": "the user", "jitslab.link": "nodes"})
    dtype = np.dtype([("a", user), ("b", np.dtype("f4", metadata={"unit": object()}))], metadata={"more": 1})

    assert {"jitslab.link": "nodes"} == rebuild_dtype(describe(dtype))["a"].metadata
    assert describe(np.dtype([("a", jitslab.link("nodes")), ("b", "f4")])) == describe(dtype)


def test_description_tells_apart_what_numpy_calls_equal():
    """Alignment, links, units as they are written, and the class of the scalars."""
    same = [
        np.dtype([("a", "i8"), ("b", "m8[s]")]),
        np.dtype([("a", "i8"), ("b", "m8[s]")], align=True),
        np.dtype([("a", jitslab.link("nodes")), ("b", "m8[s]")]),
        np.dtype([("a", jitslab.link("edges")), ("b", "m8[s]")]),
        np.dtype([("a", "i8"), ("b", "m8[1000ms]")]),
        np.dtype((np.record, [("a", "i8"), ("b", "m8[s]")])),
    ]
    assert all(one == same[0] for one in same)
    assert all(describe(one) != describe(other) for one, other in itertools.combinations(same, 2))


class Wide(np.void):
    """Records of a user's."""


HALF = "\ud800"
NOT_DESCRIBED = {  # with the message
    "no dtype": (3, "not a dtype: Cannot interpret '3' as a data type"),
    "no record": (np.dtype("f4"), "a record needs named fields, got float32; write [('value', '<f4')]"),
    "sub-array": (np.dtype(("f4", (2,))), "a record needs named fields"),
    "Python objects": (
        np.dtype([("a", [("b", "O")])]),
        "field 'a': field 'b': dtype('O') has no form in a file; numbers, dates,",
    ),
    "user's dtype": (np.dtype([("a", rational)]), "field 'a': dtype(rational) has no form in a file; numbers, dates, text"),
    "user's dtype in a sub-array": (np.dtype([("a", rational, (2,))]), "field 'a': dtype(rational) has no form in a file"),
    "user's records": (np.dtype((Wide, [("a", "i4")])), "records of a file are numpy.void or numpy.record, got Wide"),
    "user's records inside": (
        np.dtype([("a", (Wide, [("b", "i4")]))]),
        "field 'a': records of a file are numpy.void or numpy.record",
    ),
    "user's bytes": (np.dtype([("a", (Wide, 8))]), "field 'a': "),
    "an integer with fields": (
        np.dtype(("i4", [("a", "i2"), ("b", "i2")])),
        "records of a file are numpy.void or numpy.record, got int32",
    ),
    "title": (spread(["a"], ["i4"], [0], 4, titles=[3]), "field 'a': its title must be a string, got 3"),
    "half a character": (np.dtype([(HALF, "i4")]), r"field '\ud800': its name must be text, got the half of a surrogate pair in"),
    "half a title": (np.dtype([((HALF, "a"), "i4")]), "field 'a': its title must be text, got the half of a surrogate pair in"),
    "half a link": (np.dtype([("a", jitslab.link(HALF))]), "field 'a': the name of its link must be text"),
    "link that is no name": (
        np.dtype([("a", np.dtype("i8", metadata={"jitslab.link": 3}))]),
        "field 'a': the name of its link must be a",
    ),
    "link without a name": (
        np.dtype([("a", np.dtype("i8", metadata={"jitslab.link": ""}))]),
        "field 'a': a link is an int64 and names a",
    ),
    "link in a float": (
        np.dtype([("a", np.dtype("f8", metadata={"jitslab.link": "b"}))]),
        "field 'a': a link is an int64 and names a cache, got '<f8' for 'b'",
    ),
    "overlap": (spread(["a", "b"], ["i4", "i4"], [0, 2], 8), "fields overlap at byte 2 ('b')"),
    "sub-array of sub-arrays": (
        np.dtype([("a", ((">i4", (3,)), (2,)))]),
        "field 'a': it is a sub-array of sub-arrays of shape (3,); write all dimensions as one shape",
    ),
    "no bytes": (spread([], [], [], 0), "a record cannot be of size 0"),
    "17 levels": (layers(("a", "i8"), levels=17), "field 'in': " * 16 + "records in records go 16 levels deep at most"),
    "4,097 fields": (np.dtype([(f"f{i}", "i1") for i in range(4097)]), "a dtype has at most 4096 fields"),
    "4,097 fields, most inside": (
        np.dtype([("a", [(f"f{i}", "i1") for i in range(4094)]), ("b", [("c", "i1")])]),
        "field 'b': a dtype has at most 4096 fields",
    ),
    "selection of an aligned record": (
        np.dtype([("a", "i1"), ("b", "i8"), ("c", "i4")], align=True)[["a", "c"]],
        "a dtype of alignment 1 would come back from a file as one of 4; write all of its fields anew, as"
        " numpy.lib.recfunctions.repack_fields does",
    ),
}


@pytest.mark.parametrize("what", NOT_DESCRIBED)
def test_dtype_that_means_nothing_in_a_file_is_refused(what):
    """When the cache is made, by the name of the field."""
    dtype, message = NOT_DESCRIBED[what]

    with pytest.raises(LayoutError) as caught:
        describe(dtype)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "int4"])
def test_dtype_of_another_library_is_refused(name):
    """Of whatever kind it says that it is: another process may not have the library."""
    of = getattr(pytest.importorskip("ml_dtypes"), name)

    with pytest.raises(
        LayoutError, match=f"^field 'a': dtype\\({name}\\) has no form in a file; numbers, dates, text of fixed length"
    ):
        describe(np.dtype([("a", of)]))


def test_text_of_any_length_is_refused():
    """NumPy 2 has it, and not in records."""
    strings = getattr(getattr(np, "dtypes", None), "StringDType", None)
    if strings is None:
        pytest.skip("this NumPy has none")

    with pytest.raises(LayoutError, match="^a record cannot hold Python objects$"):
        describe(strings())
    with pytest.raises(
        LayoutError, match="has no form in a file; numbers, dates, text of fixed length and plain bytes have one$"
    ):
        descriptor.plain_text(strings())


def test_33_dimensions_are_refused():
    """NumPy 2 has up to 64, NumPy 1 not."""
    try:
        dtype = np.dtype([("a", "i1", (1,) * 33)])
    except ValueError:
        pytest.skip("this NumPy has none")

    with pytest.raises(LayoutError, match="^field 'a': its shape must have at most 32 dimensions, got 33$"):
        describe(dtype)


def test_millions_of_fields_that_share_a_dtype_are_not_counted():
    """A dtype of a few objects can have 2**60 fields of no bytes: the first 4,097 decide."""
    shared = np.dtype([("none", "S0")])
    for _ in range(15):
        shared = np.dtype([(f"{i}", shared) for i in range(16)])
    dtype = np.dtype([("all", shared), ("a", "i1")])
    deep = np.dtype([("a", "i1"), ("b", dtype[0].fields["0"][0])])

    with pytest.raises(LayoutError, match="records in records go 16 levels deep at most$"):
        describe(dtype)
    with pytest.raises(LayoutError, match="a dtype has at most 4096 fields$"):
        describe(deep)


def field(**changes):
    """A description of one field, or with other values in its list."""
    known = {"name": "a", "title": None, "offset": 0, "shape": [], "link": None, "content": "<i8"} | changes
    return {"itemsize": 16, "aligned": False, "record": False, "fields": [list(known.values())]}


def record(**changes):
    """The same, or with other values around the list."""
    return field() | changes


def test_field_can_be_rebuilt():
    """What the following tests change is right as it is."""
    assert spread(["a"], ["i8"], [0], 16) == rebuild_dtype(field())


WRONG = {
    "nothing": (None, "a dtype has aligned, fields, itemsize, record, got None"),
    "text": ("<i8", "a dtype has aligned, fields, itemsize, record, got '<i8'"),
    "itemsize float": (record(itemsize=16.0), "itemsize must be an integer of 0 .. 2147483647, got 16.0"),
    "itemsize true": (record(itemsize=True), "itemsize must be an integer of 0 .. 2147483647, got True"),
    "itemsize -1": (record(itemsize=-1), "itemsize must be an integer of 0 .. 2147483647, got -1"),
    "itemsize 2 GiB": (record(itemsize=1 << 31), "itemsize must be an integer of 0 .. 2147483647, got 2147483648"),
    "itemsize too small": (record(itemsize=7), "field 'a': it ends at byte 8, the record at 7"),
    "itemsize 0": (record(itemsize=0, fields=[]), "a record cannot be of size 0"),
    "aligned 1": (record(aligned=1), "a dtype is aligned or not, a numpy.record or not, and has a list of fields, got {"),
    "record null": (record(record=None), "a dtype is aligned or not, a numpy.record or not, and has a list of fields, got {"),
    "fields null": (record(fields=None), "a dtype is aligned or not, a numpy.record or not, and has a list of fields, got {"),
    "fields object": (record(fields={}), "a dtype is aligned or not, a numpy.record or not, and has a list of fields, got {"),
    "field null": (record(fields=[None]), "a field is a list of 6 values, got None"),
    "field short": (record(fields=[["a", None, 0, [], None]]), "a field is a list of 6 values, got ['a', None, 0, [], None]"),
    "fields of one name": (
        record(fields=field()["fields"] + field(offset=8)["fields"]),
        "NumPy makes no dtype of it: name already used",
    ),
    "fields that overlap": (
        record(fields=field()["fields"] + field(name="b", offset=4)["fields"]),
        "fields overlap at byte 4 ('b')",
    ),
    "name null": (field(name=None), "field None: its name must be a string, got None"),
    "name half": (field(name=HALF), r"field '\ud800': its name must be text, got the half of a surrogate pair in"),
    "title 3": (field(title=3), "field 'a': its title must be a string, got 3"),
    "title as a name": (field(title="a"), "NumPy makes no dtype of it: title already used"),
    "offset -1": (field(offset=-1), "field 'a': offset must be an integer of 0 .. 2147483647, got -1"),
    "offset false": (field(offset=False), "field 'a': offset must be an integer of 0 .. 2147483647, got False"),
    "offset 9": (field(offset=9), "field 'a': it ends at byte 17, the record at 16"),
    "offset 2 GiB": (field(offset=1 << 31), "field 'a': offset must be an integer of 0 .. 2147483647, got 2147483648"),
    "offset not aligned": (record(aligned=True, fields=field(offset=4)["fields"]), "NumPy makes no dtype of it: offset 4 for"),
    "itemsize not aligned": (
        record(aligned=True, itemsize=12),
        "NumPy makes no dtype of it: NumPy dtype descriptor requires alignment of 8 bytes",
    ),
    "shape null": (field(shape=None), "field 'a': its shape must be a list, got None"),
    "shape number": (field(shape=2), "field 'a': its shape must be a list, got 2"),
    "shape true": (field(shape=[True]), "field 'a': a dimension must be an integer of 0 .. 2147483647, got True"),
    "shape -1": (field(shape=[-1]), "field 'a': a dimension must be an integer of 0 .. 2147483647, got -1"),
    "shape 33": (field(shape=[1] * 33), "field 'a': its shape must have at most 32 dimensions, got 33"),
    "shape large": (
        field(shape=[1 << 28]),
        "field 'a': its size must be at most 2147483647 bytes, got shape (268435456,) of 8 bytes",
    ),
    "shape of 2**64": (field(shape=[1 << 16] * 4), "field 'a': its size must be at most 2147483647 bytes, got shape"),
    "shape beyond": (field(shape=[3]), "field 'a': it ends at byte 24, the record at 16"),
    "link 3": (field(link=3), "field 'a': the name of its link must be a string, got 3"),
    "link empty": (field(link=""), "field 'a': a link is an int64 and names a cache, got '<i8' for ''"),
    "link in u8": (field(link="b", content="<u8"), "field 'a': a link is an int64 and names a cache, got '<u8' for 'b'"),
    "link in a record": (field(link="b", content=field()), "field 'a': a link is an int64 and names a cache, got {"),
    "content null": (field(content=None), "field 'a': a dtype has aligned, fields, itemsize, record, got None"),
    "content a list": (field(content=["<i8"]), "field 'a': a dtype has aligned, fields, itemsize, record, got ['<i8']"),
    "another form": (field(content="|i8"), "{'aligned': False, 'fields': [['a', None, 0, [], None, '|i8']], "),
    "16 levels and one": (
        field(
            content=json.loads(
                "".join(
                    ['{"itemsize":16,"aligned":false,"record":false,"fields":[["a",null,0,[],null,'] * 16 + ["0"] + ["]]}"] * 16
                )
            )
        ),
        "field 'a': " * 16 + "records in records go 16 levels",
    ),
    "4,097 fields": (record(fields=[[f"{i}", None, 0, [], None, "|S0"] for i in range(4097)]), "a dtype has at most 4096 fields"),
}


@pytest.mark.parametrize("what", WRONG)
def test_description_of_no_dtype_is_refused(what):
    """Before NumPy sees it, where NumPy's answer depends on its version."""
    descriptor, message = WRONG[what]

    with pytest.raises(LayoutError) as caught:
        rebuild_dtype(descriptor)
    assert str(caught.value).startswith(message)


TEXTS = (
    *("i8", "=i8", "<i8 ", " <i8", "<i8\n", "<i0", "<i3", "<i16", "<i", "<i8,<i8", "<i٨", "", "O", "|O8", "|O", "<T16", "|T16"),
    *(
        "<f16",
        "<f8/63",
        "<f16/",
        "<i8/63",
        "<c8/63",
        "<f1",
        "<f64",
        "<c4",
        "|b2",
        "|b0",
        "<p8",
        "<S-1",
        "|S2147483648",
        "|S99999999999",
    ),
    *(
        "<U536870912",
        "<U1073741824",
        "<M4[s]",
        "<M8[0s]",
        "<M8[-1s]",
        "<M8[]",
        "<M8[x]",
        "<M8[99999999999s]",
        "<M8[4294967297s]",
        "<M8[s",
    ),
    *(
        "<M8[generic]",
        "<i8[s]",
        "<M8[1s]",
        "<m8[s]/63",
        "(2,)<i8",
        "|V8[s]",
        "<V8",
        ">V8",
        ">S3",
        ">i1",
        "|u2",
        "S3",
        "int64",
        "builtins",
    ),
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_no_dtype_is_refused(text):
    """NumPy's own form is the only one that is taken: no other names of it, no units of nothing."""
    with pytest.raises(LayoutError):
        rebuild_dtype(field(content=text))


def test_long_doubles_of_another_machine_are_told():
    """Of 16 bytes there are two sorts: x86-64 has 63 bits of mantissa, aarch64 112."""
    if np.dtype("g").itemsize == 8:
        pytest.skip("long doubles are doubles here")
    text = describe(np.dtype([("a", "g")]))["fields"][0][-1]
    bits = np.finfo("g").nmant

    assert f"<f{np.dtype('g').itemsize}/{bits}" == text
    with pytest.raises(PoolVersionError, match=f"^field 'a': its long doubles have 52 bits of mantissa, this machine's {bits}$"):
        rebuild_dtype(field(content=text.replace(f"/{bits}", "/52")))
    with pytest.raises(PoolVersionError, match=r"^pool.json: caches\[1\]: field 'x': its long doubles have 1 bits of mantissa"):
        decode(changed(["caches", 1, "dtype", "fields", 0, -1], "<f16/1"), "pool.json")


def test_wrong_dtype_in_a_file_is_corrupt():
    """With file, cache and field."""
    with pytest.raises(CorruptPoolError) as caught:
        decode(changed(["caches", 1, "dtype", "fields", 1, 2], 13), "pool.json")
    assert str(caught.value) == "pool.json: caches[1]: field 'id': it ends at byte 17, the record at 16"


UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
orders = st.sampled_from("<>")
plain = st.one_of(
    st.sampled_from(("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", "g", "G")).flatmap(
        lambda of: orders.map(lambda order: np.dtype(of).newbyteorder(order))
    ),
    st.builds("{}{}8[{}{}]".format, orders, st.sampled_from("mM"), st.integers(1, 10**6), st.sampled_from(UNITS)).map(np.dtype),
    st.builds("{}{}{}".format, orders, st.sampled_from("SUV"), st.integers(0, 9)).map(np.dtype),
    st.builds(
        lambda name, order: jitslab.link(name).newbyteorder(order), st.text(st.characters(codec="utf-8"), min_size=1), orders
    ),
)


@st.composite
def records(draw, inner):
    """A record of a few fields: packed, aligned, or with gaps, in any order."""
    aligned = draw(st.booleans())
    spec = {"names": [], "formats": [], "offsets": [], "titles": []}
    texts = iter(draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=8, unique=True)))
    end, align = 0, 1
    for name in texts:
        of = draw(inner)
        shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
        of = np.dtype((of, shape)) if shape and of.itemsize else of  # NumPy makes no sub-array of texts of no bytes
        grain = of.alignment if aligned else 1
        start = -(-(end + draw(st.integers(0, 9))) // grain) * grain
        spec["names"].append(name)
        spec["formats"].append(of)
        spec["offsets"].append(start)
        spec["titles"].append(next(texts, None) if draw(st.booleans()) else None)
        end, align = start + max(of.itemsize, 1), max(align, grain)
    order = draw(st.permutations(range(len(spec["names"]))))
    spec = {key: [values[i] for i in order] for key, values in spec.items()}
    spec["itemsize"] = -(-max(end + draw(st.integers(0, 9)), 1) // align) * align
    made = np.dtype(spec, align=aligned)
    return np.dtype((np.record, made)) if draw(st.booleans()) else made


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.recursive(records(plain), lambda inner: records(plain | inner), max_leaves=6))
def test_any_dtype_comes_back(dtype):
    """Of every kind, nested, with sub-arrays, titles, offsets, alignment, byte orders and links; also in a whole pool."""
    read = rebuild_dtype(json.loads(json.dumps(describe(dtype))))
    stride = -(-dtype.itemsize // max(1, dtype.alignment)) * max(1, dtype.alignment)
    pool = meta(caches=(entry(dtype=dtype, stride=stride),), root=1)

    assert dtype == read
    assert facts(dtype) == facts(read)
    assert jitslab.links_of(dtype) == jitslab.links_of(read)
    assert facts(dtype) == facts(decode(encode(pool), "pool.json").caches[0].dtype)


# --- Mutations ---


def broken(made):
    """The numbers of a meta that no kernel may get, told without the code that is tested."""
    ids = [cache.id for cache in made.caches]
    names = [cache.name for cache in made.caches]
    laws = {
        "id": 0 <= made.id <= U8,
        "root": made.root is None or made.root in ids,
        "ids": len(set(ids)) == len(ids) and all(0 <= one < made.next <= U4 + 1 for one in ids),
        "names": len(set(names)) == len(names),
    }
    for cache in made.caches:
        laws |= {
            f"{cache.id} name": 1 <= len(cache.name) <= 255 and cache.name.isprintable() and "#" not in cache.name,
            f"{cache.id} stride": 1 <= cache.dtype.itemsize <= cache.stride and cache.stride % cache.dtype.alignment == 0,
            f"{cache.id} shift": 0 <= cache.shift <= 16 and cache.slots % (1 << cache.shift) == 0,
            f"{cache.id} slots": 1 <= cache.capacity <= cache.slots <= 1 << 32 and cache.slots * cache.stride <= 1 << 46,
            f"{cache.id} template": cache.template is None or len(cache.template) == cache.dtype.itemsize,
            f"{cache.id} dtype": not cache.dtype.hasobject and cache.dtype.names is not None,
            f"{cache.id} links": all(isinstance(name, str) and name for name in jitslab.links_of(cache.dtype).values()),
        }
    return [law for law, holds in laws.items() if not holds]


def judge(data):
    """Decode: whether it was a pool; anything but a valid pool and the two errors fails the test."""
    try:
        made = decode(data, "pool.json")
    except (CorruptPoolError, PoolVersionError) as refused:
        message = str(refused)
    else:
        again = encode(made)
        assert [] == broken(made)
        assert again == encode(decode(again, "pool.json"))
        return True
    assert message.startswith("pool.json: ")
    assert len(message) < 2000
    return False


RICH = meta(
    next=9,
    caches=(
        entry(),
        entry(id=4, name="every kind", stride=128, dtype=DESCRIBED["every kind"]),
        entry(id=7, name="deep", stride=400, dtype=np.dtype([("a", DESCRIBED["links"]), ("b", DESCRIBED["titles"], (2, 2))])),
        entry(id=8, name="last", stride=16, dtype=POINT, template=bytes(16), class_name="Point"),
    ),
)


def test_every_cut_and_every_changed_bit_is_seen():
    """Of the text by its checksum, of the first line by its form."""
    data = encode(RICH)

    assert judge(data)
    assert not any(judge(data[:n]) for n in range(len(data)))
    for i, bit in itertools.product(range(len(data)), range(8)):
        assert not judge(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_with_a_true_first_line(seed):
    """A few of the text's bytes changed, moved, left out or doubled, and the checksum made for them."""
    rng = random.Random(seed)
    whole = body_of(encode(RICH))
    good = 0
    for _ in range(1000):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            i, j = sorted(rng.randrange(len(body) + 1) for _ in range(2))
            match rng.randrange(6):
                case 0:
                    body[min(i, len(body) - 1)] ^= 1 << rng.randrange(8)
                case 1:
                    body[min(i, len(body) - 1)] = rng.choice(b'0123456789-.eE[]{},:"\\ntf<>|')
                case 2:
                    del body[i : i + rng.randint(1, 9)]
                case 3:
                    body[i:i] = body[j : j + rng.randint(1, 60)]
                case 4:
                    body[i:i] = rng.randbytes(rng.randint(1, 4))
                case _:
                    body[i:j] = body[i:j][::-1] if j - i < 20 else body[i:j]
            if not body:
                body = bytearray(whole)
        good += judge(sealed(bytes(body)))
    assert 0 < good < 500


def nasty(rng, tree):
    """A value that is at home nowhere, or elsewhere."""
    deep = []
    for _ in range(rng.choice((5, 40, 60, 500))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            *(
                None,
                True,
                False,
                0,
                1,
                2,
                3,
                7,
                8,
                16,
                17,
                31,
                32,
                255,
                256,
                4095,
                4096,
                4097,
                -1,
                -(1 << 63),
                0.5,
                1e300,
                float("nan"),
            ),
            *(
                1 << 16,
                (1 << 31) - 1,
                1 << 31,
                1 << 32,
                (1 << 32) + 1,
                1 << 46,
                (1 << 63) - 1,
                1 << 63,
                U8,
                U8 + 1,
                10**19,
                10**30,
                10**4000,
            ),
            *(
                "",
                "a",
                "nodes",
                "deep",
                "x" * 255,
                "x" * 300,
                "\0",
                HALF,
                "#",
                " ",
                "é",
                "<i8",
                ">i8",
                "|S0",
                "|V8",
                "<M8[0s]",
                "O",
                "00",
                "[" * 99,
            ),
            *([], {}, [0], [1] * 32, [1] * 33, [0] * 40, [1 << 16] * 4, [None] * 6, deep, {"a": 1}, rng.choice(places(tree))[1]),
        )
    )


def places(tree):
    """All (path, value) of an object of JSON, but the object itself."""
    found = []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found += [((key,), value), *(((key, *path), inner) for path, inner in places(value))]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_any_values_with_a_true_first_line(seed):
    """Values of JSON replaced, left out, moved, doubled and added: a stranger's work."""
    rng = random.Random(1000 + seed)
    whole = json.dumps(loaded(RICH))
    good = 0
    for _ in range(500):
        tree = json.loads(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            path, value = rng.choice(places(tree))
            *way, last = path
            of = at(tree, way)
            match rng.randrange(5):
                case 0 | 1:
                    of[last] = nasty(rng, json.loads(whole))
                case 2:
                    del of[last]
                case 3 if isinstance(of, list):
                    of.insert(last, rng.choice((value, nasty(rng, json.loads(whole)))))
                case 3:
                    of[rng.choice((f"{last} ", "more"))] = value
                case _ if type(value) is int:
                    of[last] = value + rng.choice((-8, -1, 1, 8)) if rng.random() < 0.5 else value << rng.randrange(33)
                case _:
                    of[last] = value
        good += judge(sealed(tree))
    assert 0 < good < 400


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    """With and without a first line; and as a head of words."""
    assert not judge(data)
    assert not judge(sealed(data))
    with pytest.raises(SlabError):
        check_words_head(data.ljust(2048, b"\0"), 1, entry(), "1.words")
    with pytest.raises(LayoutError):
        rebuild_dtype(field(content=data.decode("latin-1")))


# --- The head of a file of words ---


def head(**changes):
    """The head of the small cache's words in pool 12, with 2 slabs, or with other values."""
    made = np.frombuffer(bytearray(words_head(12, entry(), 2, 6)), form.WORDS_HEAD, 1)[0]
    for name, value in changes.items():
        made[name] = value
    return made.tobytes().ljust(2048, b"\0")


def test_head_is_64_bytes_of_2048():
    """The offsets are the format's: a change must be seen in review."""
    fields = form.WORDS_HEAD.fields

    assert {"magic": 0, "format": 8, "cache": 12, "pool": 16, "n_slabs": 24, "first_generation": 32, "pad": 36} == {
        name: fields[name][1] for name in form.WORDS_HEAD.names
    }
    assert 64 == form.WORDS_HEAD.itemsize
    assert (
        bytes.fromhex("6a6974736c616257 01000000 01000000 0c00000000000000 0200000000000000 06000000").ljust(2048, b"\0")
        == head()
    )


def test_head_is_read_as_it_was_written():
    """At the bounds, too; from a mapping as from bytes."""
    largest = entry(id=U4 - 1, shift=0, slots=1 << 32, stride=22)

    assert (2, 6) == check_words_head(head(), 12, entry(), "1.words")
    assert (2, 6) == check_words_head(memoryview(head()), 12, entry(), "1.words")
    for n_slabs, first in ((0, 2), (1 << 32, (1 << 30) - 2)):
        assert (n_slabs, first) == check_words_head(words_head(U8, largest, n_slabs, first), U8, largest, "1.words")


HEADS = {
    "cut": (head()[:-1], CorruptPoolError, "its head has 2048 bytes, got 2047"),
    "empty": (b"", CorruptPoolError, "its head has 2048 bytes, got 0"),
    "longer": (head() + b"\0", CorruptPoolError, "its head has 2048 bytes, got 2049"),
    "zeros": (
        bytes(2048),
        CorruptPoolError,
        "its first bytes must be 'jitslabW', got b'\\x00\\x00\\x0...0\\x00\\x00\\x00'",
    ),
    "format 0": (head(format=0), CorruptPoolError, "format in its head must be 1, got 0"),
    "format 2": (head(format=2), PoolVersionError, "its format is 2, this jitslab knows 1; open it with a newer jitslab"),
    "other cache": (head(cache=2), CorruptPoolError, "cache in its head must be 1, got 2"),
    "other pool": (head(pool=13), CorruptPoolError, "pool in its head must be 12, got 13"),
    "slabs": (head(n_slabs=3), CorruptPoolError, "n_slabs in its head must be 0 .. 2, got 3"),
    "most slabs": (head(n_slabs=U8), CorruptPoolError, "n_slabs in its head must be 0 .. 2, got 18446744073709551615"),
    "generation 0": (
        head(first_generation=0),
        CorruptPoolError,
        "first_generation in its head must be even and of 2 .. 1073741822, got 0",
    ),
    "generation odd": (
        head(first_generation=7),
        CorruptPoolError,
        "first_generation in its head must be even and of 2 .. 1073741822, got 7",
    ),
    "generation 2**30": (
        head(first_generation=1 << 30),
        CorruptPoolError,
        "first_generation in its head must be even and of 2 .. 1073741822, got 1073741824",
    ),
    "pad": (head(pad=b"\1"), CorruptPoolError, "zeros must follow its head up to byte 2048"),
    "behind it": (head()[:-1] + b"\1", CorruptPoolError, "zeros must follow its head up to byte 2048"),
}


@pytest.mark.parametrize("what", HEADS)
def test_head_that_can_not_be_is_refused(what):
    """Before a kernel gets a number of it."""
    data, error, message = HEADS[what]

    with pytest.raises(error) as caught:
        check_words_head(data, 12, entry(), "book/1.words")
    assert f"book/1.words: {message}" == str(caught.value)


def test_every_changed_bit_of_a_head_is_seen_or_harmless():
    """Only `n_slabs` and the first generation can change to other values that are good."""
    whole = head()
    read = set()
    for i, bit in itertools.product(range(2048), range(8)):
        try:
            read.add(check_words_head(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :], 12, entry(), "1.words"))
        except (CorruptPoolError, PoolVersionError):
            pass

    assert {(0, 6)} | {(2, 6 ^ 1 << bit) for bit in range(1, 30)} == read

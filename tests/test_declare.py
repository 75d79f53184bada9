"""Records declared as classes, and links: what becomes of annotations, what is refused by name, what type checkers see."""

import abc
import pickle
import types
import typing  # noqa: F401  # an annotation that is a text names it
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import pytest
import typed

import jitslab
from jitslab import layout, link, links_of

NODE = np.dtype([("value", "f8"), ("next", link("nodes"))])


# --- Declared classes ---


def test_declared_class_stands_for_its_dtype():
    """NumPy, the check of dtypes and caches take the class; fields are aligned, in the order of the annotations."""
    expected = np.dtype(
        [
            ("value", "f8"),
            ("flags", "u1"),
            ("next", "i8"),
            ("data", "f4", (3,)),
            ("at", np.dtype([("x", "f8"), ("y", "f8")], align=True)),
        ],
        align=True,
    )

    assert expected == typed.Node.dtype == np.dtype(typed.Node) == layout.check_dtype(typed.Node)
    assert np.dtype(typed.Node).isalignedstruct
    assert 16 == np.dtype(typed.Node).fields["next"][1]
    assert (2,) == np.zeros(2, typed.Node).shape
    with jitslab.SlabCache("declared", typed.Node, capacity=4) as cache:
        assert expected == cache.dtype


def test_guards_are_of_the_class_and_have_its_methods():
    """Methods and properties of the class work on guards; so do those of a nested class on views."""

    @jitslab.record
    class Counter:
        """Counts."""

        n: jitslab.u4
        at: typed.Point
        limit: ClassVar[int] = 3

        def up(self, by=1):
            """Count."""
            self.n += by
            return self.n

        @property
        def is_full(self):
            """Whether the limit is reached."""
            return self.n >= self.limit

        @property
        def broken(self):
            """Fails."""
            return self.m

    with jitslab.SlabCache("counters", Counter, capacity=4, init="zero") as cache:
        with cache.allocate() as counter:
            assert isinstance(counter, Counter)
            assert isinstance(counter, jitslab.SlabObjectGuard)
            assert isinstance(counter.at, typed.Point)
            assert (2, False) == (counter.up(2), counter.is_full)
            assert (3, True) == (counter.up(), counter.is_full)
            counter.at.x, counter.at.y = 3, 4
            assert 5.0 == counter.at.norm()
            assert "<Counter of 'counters': n=3, at=(x=3.0, y=4.0)>" == repr(counter)
            assert "<Point .at: x=3.0, y=4.0>" == repr(counter.at)
            with pytest.raises(jitslab.FieldNameError, match=r"^the record has no field 'limits'; it has 'n', 'at'$"):
                counter.limits = 3
            with pytest.raises(jitslab.FieldNameError, match=r"^'up' is a name of the guard itself, and the record has no such "):
                counter.up = 3
            with pytest.raises(AttributeError, match=r"(^the record has no field|object has no attribute) 'm'"):  # not 'broken'
                counter.broken
        assert 0 == len(cache)
        with cache.allocate_many(2) as batch:
            batch.n = 4
            assert [4, 4] == batch.n.tolist()
    assert ("Counter", "Counts.") == (Counter.__name__, Counter.__doc__)


def test_every_alias_is_what_it_is_named():
    """jitslab.u1 is NumPy's u1, and what Python makes of it."""
    for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "b1"):
        cls = jitslab.record(type("Alias", (), {"__annotations__": {"it": getattr(jitslab, name)}}))

        assert np.dtype([("it", name)]) == cls.dtype


def test_annotations_of_every_sort():
    """Python's own types, NumPy's scalars, dtypes, Annotated with whatever NumPy takes."""

    @jitslab.record
    class All:
        a: bool
        b: int
        c: float
        d: complex
        e: np.float32
        f: Annotated[bytes, "S5"]
        g: Annotated[str, "U3"]
        h: Annotated[np.datetime64, "M8[ns]"]
        i: Annotated[npt.NDArray[np.int16], ("i2", (2, 3))]
        j: Annotated[Any, (typed.Point, (2,))]
        k: Annotated[Any, np.dtype([("x", "i4")])]
        m: Annotated[int, link("nodes"), "further words are for others"]

    formats = ["?", "i8", "f8", "c16", "f4", "S5", "U3", "M8[ns]", ("i2", (2, 3)), (typed.Point.dtype, (2,)), [("x", "i4")], "i8"]
    assert np.dtype(list(zip("abcdefghijkm", formats, strict=True)), align=True) == All.dtype
    assert {("m",): "nodes"} == links_of(All)


def test_inherited_fields_come_first():
    """A declared class may be inherited from."""

    @jitslab.record
    class Solid(typed.Point):
        z: jitslab.f8

        def norm(self):
            """With z."""
            return (self.x**2 + self.y**2 + self.z**2) ** 0.5

    assert ("x", "y", "z") == Solid.dtype.names
    with jitslab.SlabCache("solids", Solid, capacity=4) as cache, cache.allocate() as it:
        it.x, it.y, it.z = 1, 2, 2
        assert 3.0 == it.norm()
        assert isinstance(it, typed.Point)


def test_class_that_only_inherits_is_refused():
    """Its guards would lack what it adds: it is to be declared, too, with further fields or without."""

    class Sub(typed.Point):
        def twice(self):
            return 2 * self.x

    with pytest.raises(jitslab.LayoutError) as caught:
        jitslab.SlabCache("subs", Sub, capacity=4)
    assert "Sub inherits from a declared record; decorate it with jitslab.record, too" == str(caught.value)
    with jitslab.SlabCache("subs", jitslab.record(Sub), capacity=4) as cache, cache.allocate() as it:
        it.x = 4
        assert 8.0 == it.twice()


def test_strings_as_annotations_are_evaluated():
    """As after ``from __future__ import annotations``, with local names."""
    local = typed.Point

    @jitslab.record
    class Late:
        at: "local"
        n: "jitslab.i4"

    assert np.dtype([("at", local), ("n", "i4")], align=True) == Late.dtype


def test_declared_class_is_used_in_compiled_code():
    """Numba sees the dtype."""

    @numba.njit
    def push(nodes, head, value):
        h = nodes.alloc()
        nodes[h].value = value
        nodes[h].next = head
        nodes[h].at.x = 2 * value
        return h

    with jitslab.SlabCache("nodes", typed.Node, capacity=4) as nodes:
        h = push(nodes, push(nodes, 0, 1.0), 2.0)
        with nodes.adopt(h) as node, nodes.adopt(node.next) as last:
            assert (2.0, 4.0, 1.0, 0) == (node.value, node.at.x, last.value, last.next)


def declare(_bases=(), _name="Bad", **annotations):
    """Declare a class with these annotations."""
    return jitslab.record(type(_name, _bases, {"__annotations__": annotations, "__module__": __name__}))


class Loose:
    """A base whose objects have a __dict__."""


T = TypeVar("T")
BAD = {
    "no size": ({"tag": Annotated[bytes, "S"]}, "field 'tag' of Bad: |S0 has no size; write one, as in 'S8'"),
    "str": ({"tag": str}, "field 'tag' of Bad: no NumPy type in str; write Annotated[str, 'f8'] with the one you mean"),
    "list": ({"it": list}, "field 'it' of Bad: no NumPy type in list; write Annotated[list, 'f8'] with the one you mean"),
    "optional": ({"it": int | None}, None),
    "generic": ({"it": list[int]}, None),
    "object": ({"it": Annotated[Any, "O"]}, "field 'it' of Bad: a record cannot hold Python objects"),
    "np.object_": ({"it": np.object_}, "field 'it' of Bad: a record cannot hold Python objects"),
    "no such type": ({"it": Annotated[int, "no such"]}, None),
    "abstract": ({"it": np.number}, None),
    "undeclared": (
        {"it": Loose},
        "field 'it' of Bad: no NumPy type in Loose; write Annotated[Loose, 'f8'] with the one you mean",
    ),
    "unknown": ({"it": "nowhere.nothing"}, "field 'it' of Bad: name 'nowhere' is not defined"),
    "no text": ({"it": "1 +"}, None),
    "method": ({"free": jitslab.i4}, "field 'free' of Bad would hide what guards have by that name; rename it"),
    "record": ({"record": jitslab.i4}, "field 'record' of Bad would hide what guards have by that name; rename it"),
    "dtype": ({"dtype": jitslab.i4}, "field 'dtype' of Bad would hide what guards have by that name; rename it"),
    "private": ({"_it": jitslab.i4}, "field '_it' of Bad: names that begin with _ are not for fields"),
    "nothing": ({}, "Bad has no annotated fields"),
    "class variables only": ({"it": ClassVar[int]}, "Bad has no annotated fields"),
}


@pytest.mark.parametrize("crime", BAD)
def test_wrong_declaration_is_refused_by_name(crime):
    """What cannot be a field is refused when the class is made, with its name."""
    annotations, text = BAD[crime]

    with pytest.raises(jitslab.LayoutError) as caught:
        declare(**annotations)
    assert text is None or text == str(caught.value)
    assert str(caught.value).startswith("field 'it' of Bad: ") or text


def test_wrong_classes_are_refused():
    """Defaults, slots, bases with a __dict__, fields twice, and what is no class."""
    with pytest.raises(
        jitslab.LayoutError, match=r"^field 'n' of Bad has a default; give the cache a record to start from, by init$"
    ):
        jitslab.record(type("Bad", (), {"__annotations__": {"n": int}, "n": 3}))
    with pytest.raises(jitslab.LayoutError, match=r"^Bad has __slots__; fields are what it annotates$"):
        jitslab.record(type("Bad", (), {"__annotations__": {"n": int}, "__slots__": ("m",)}))
    with pytest.raises(
        jitslab.LayoutError, match=r"^a base of Bad gives its objects a __dict__; give that base __slots__ = \(\)$"
    ):
        declare((Loose,), n=int)
    with pytest.raises(jitslab.LayoutError, match=r"^field 'x' of Bad is declared twice$"):
        declare((typed.Point,), x=int)
    with pytest.raises(jitslab.LayoutError, match=r"^record decorates a class, got int$"):
        jitslab.record(3)


def test_generic_class_may_be_declared():
    """Bases without a __dict__ are fine."""

    @jitslab.record
    class Box(Generic[T]):
        n: jitslab.i4

    assert ("n",) == Box.dtype.names
    with jitslab.SlabCache("boxes", Box, capacity=4) as cache, cache.allocate() as box:
        assert isinstance(box, Box)


def test_declared_class_has_no_instances():
    """Only guards and views are of it."""
    text = "Point declares a record; take one from a cache: SlabCache('name', Point).allocate()"

    with pytest.raises(jitslab.LayoutError) as caught:
        typed.Point()
    assert text == str(caught.value)


GUARDS_OWN = ["free", "release", "cache", "handle", "record", "_read", "__repr__", "__getitem__", "__setitem__", "__enter__"]
GUARDS_OWN += ["__exit__", "__setattr__", "__getattr__", "__del__", "__dir__", "__copy__", "__deepcopy__", "__reduce_ex__"]
GUARDS_OWN += ["__eq__", "__hash__", "__init__", "__new__", "__getattribute__", "__delattr__", "__class__"]


@pytest.mark.parametrize("name", GUARDS_OWN)
def test_method_that_guards_would_hide_is_refused(name):
    """It would never be called, or break what guards are; in the class and in its bases."""
    text = "would be hidden by what guards have by that name; rename it$"
    for method in (lambda self, *rest: 1, property(lambda self: 1)):
        declared = type("Taken", (), {"__annotations__": {"n": jitslab.i4}, name: method})
        with pytest.raises(jitslab.LayoutError, match=f"^method '{name}' of Taken {text}"):
            jitslab.record(declared)
        mixin = type("Mixin", (), {name: method, "__slots__": ()})
        with pytest.raises(jitslab.LayoutError, match=rf"^method '{name}' of Taken \(of its base Mixin\) {text}"):
            jitslab.record(type("Taken", (mixin,), {"__annotations__": {"n": jitslab.i4}}))


def test_other_special_methods_are_the_guards():
    """What guards do not have themselves, a class may add."""

    @jitslab.record
    class Sized:
        n: jitslab.i4

        def __len__(self):
            return self.n

        def __str__(self):
            return f"{self.n} long"

        def __lt__(self, other):
            return self.n < other.n

    with jitslab.SlabCache("sized", Sized, capacity=4) as cache, cache.allocate() as a, cache.allocate() as b:
        a.n, b.n = 3, 4
        assert (3, "3 long", True, False) == (len(a), str(a), a < b, b < a)


class Slotted:
    """Has room of its own."""

    __slots__ = ("room",)


class Abstract(abc.ABC):
    """Asks for a method."""

    __slots__ = ()

    @abc.abstractmethod
    def area(self):
        """Return the area."""


class Meta(type):
    """A metaclass that does not go with others."""

    def __new__(cls, name, bases, names, *, word):
        """Want a word."""
        return super().__new__(cls, name, bases, names)


class OfMeta(metaclass=Meta, word="a"):
    """Of a metaclass."""

    __slots__ = ()


BASES = {
    "slots": ((Slotted,), {}, "^guards cannot inherit from Odd: "),
    "a number": ((int,), {}, "^guards cannot inherit from Odd: "),
    "abstract": ((Abstract,), {}, "^Odd lacks what its base declares as abstract: area$"),
    "metaclass": ((OfMeta,), {"word": "b"}, "^guards cannot inherit from Odd: "),
    "tuple": ((tuple,), {}, "^Odd is a tuple; a record is a class of its own, without NamedTuple$"),
}


@pytest.mark.parametrize("base", BASES)
def test_base_that_guards_cannot_have_is_refused(base):
    """When the class is declared, not when its first record is wanted."""
    bases, words, text = BASES[base]
    odd = types.new_class("Odd", bases, words, lambda names: names.update(__annotations__={"n": jitslab.i4}))
    with pytest.raises(jitslab.LayoutError, match=text):
        jitslab.record(odd)


def test_abstract_base_that_is_satisfied_is_fine():
    """Abstract methods are what a base asks for; here they are."""

    @jitslab.record
    class Square(Abstract):
        side: jitslab.f8

        def area(self):
            return self.side**2

    with jitslab.SlabCache("squares", Square, capacity=4) as cache, cache.allocate() as it:
        it.side = 3
        assert 9.0 == it.area()
        assert isinstance(it, Abstract)


def test_class_variables_in_text_are_no_fields():
    """As all annotations are after ``from __future__ import annotations``."""
    for text in ("ClassVar[int]", "ClassVar", "typing.ClassVar[int]"):
        annotations = {"limit": text, "n": "jitslab.i4", "at": "Annotated[int, 'i8']"}
        declared = jitslab.record(type("Text", (), {"__annotations__": annotations, "limit": 3, "__module__": __name__}))
        assert ("n", "at") == declared.dtype.names
        assert 3 == declared.limit


@pytest.mark.parametrize("code", ["i4", "S3"])
def test_field_named_as_what_only_classes_have(code):
    """A guard has no `mro`: a field of that name is an attribute."""
    value = {"i4": 5, "S3": b"ab"}[code]
    names = ["mro", "__name__"]
    with jitslab.SlabCache("mro", np.dtype([(name, code) for name in names]), capacity=4) as cache, cache.allocate() as it:
        it.mro = value
        assert value == it.mro == it["mro"] == it.record["mro"]
        with pytest.raises(jitslab.FieldNameError, match="^the record has no field 'mroo'; near it: 'mro'$"):
            it.mroo = 1
    declared = jitslab.record(type("Declared", (), {"__annotations__": {"mro": jitslab.i4}}))
    assert ("mro",) == declared.dtype.names


# --- Links ---


def test_link_is_an_int64_that_remembers():
    """It compares as int64, and links are found at every depth."""
    deep = np.dtype([("id", "i4"), ("node", NODE), ("kids", link("kids"), (2, 3)), ("many", NODE, (4,))], align=True)

    assert np.dtype("i8") == link("nodes")
    assert {("next",): "nodes"} == links_of(NODE)
    assert {("node", "next"): "nodes", ("kids",): "kids", ("many", "next"): "nodes"} == links_of(deep)
    assert {} == links_of([("x", "f8")])
    assert {("next",): "nodes"} == links_of(typed.Node)


KEEPING = {
    "array": lambda d: np.zeros(3, d).dtype,
    "scalar": lambda d: np.zeros(3, d)[1].dtype,
    "copy": lambda d: np.zeros(3, d).copy().dtype,
    "dtype of dtype": lambda d: np.dtype(d, copy=True),
    "byte order": lambda d: d.newbyteorder("S").newbyteorder("S"),
    "selection": lambda d: np.zeros(3, d)[["next"]].dtype,
    "concatenate": lambda d: np.concatenate([np.zeros(3, d), np.zeros(1, d)]).dtype,
    "pickle": lambda d: pickle.loads(pickle.dumps(d)),
    "sub-array": lambda d: np.dtype((d, (3,))).base,
    "nested": lambda d: np.dtype([("it", d)], align=True)["it"],
    "cache": lambda d: jitslab.SlabCache("nodes", d, capacity=4).dtype,
    "gather": lambda d: (c := jitslab.SlabCache("nodes", d, capacity=4)).gather(c.alloc_many(2)).dtype,
}


@pytest.mark.parametrize("operation", KEEPING)
def test_link_is_kept(operation):
    """What NumPy does with dtypes and arrays hands the metadata on."""
    assert {("next",): "nodes"} == links_of(KEEPING[operation](NODE))


def test_file_of_numpy_drops_links_with_a_warning(tmp_path):
    """As the docstring of `link` says; a view without links is saved and loaded by every NumPy."""
    with pytest.warns(UserWarning, match="metadata"):
        np.save(tmp_path / "a.npy", np.zeros(3, NODE))
    plain = np.dtype([("value", "f8"), ("next", "i8")])
    np.save(tmp_path / "plain.npy", np.zeros(3, NODE).view(plain))

    assert plain == np.load(tmp_path / "plain.npy").dtype
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        with pytest.raises(ValueError, match="invalid shape"):
            np.load(tmp_path / "a.npy")
    else:
        assert {} == links_of(np.load(tmp_path / "a.npy").dtype)


def test_numba_sees_a_plain_integer():
    """A link is an int64 in compiled code, in records of the same Numba type."""
    plain = np.dtype([("value", "f8"), ("next", "i8")])

    assert numba.from_dtype(plain) is numba.from_dtype(NODE) or numba.from_dtype(plain) == numba.from_dtype(NODE)
    assert numba.types.int64 == numba.from_dtype(NODE).typeof("next")


@pytest.mark.parametrize("name", ["", 3, None, b"nodes"])
def test_link_without_a_name_is_refused(name):
    """A cache is named by a string."""
    with pytest.raises(jitslab.LayoutError) as caught:
        link(name)
    assert f"a link names a cache by a string that is not empty, got {name!r}" == str(caught.value)


def test_links_of_what_is_no_record_are_refused():
    """As for any dtype of a cache."""
    with pytest.raises(jitslab.LayoutError):
        links_of("i8")


# --- Type checkers ---


def test_type_checker_sees_the_fields():
    """Mypy takes every line of `typed`, where wrong ones are marked as such."""
    api = pytest.importorskip("mypy.api")
    here = Path(__file__).parent
    options = ["--strict", "--config-file", str(here.parent / "pyproject.toml"), str(here / "typed.py")]
    out, err, status = api.run(options)

    assert (status, err) == (0, ""), out


def test_what_the_type_checker_sees_is_so():
    """The same lines run."""
    assert 1.0 == typed.plain()
    with pytest.raises(jitslab.FieldTypeError):
        typed.use()

"""Many records at once, by arrays of handles: read, written, asked for, made."""

import numpy as np
import pytest

import jitslab

RECORD = np.dtype([("x", "f8"), ("n", "u1"), ("v", "f4", (2,)), ("at", [("a", "i4")])])


@pytest.fixture
def cache():
    """Return a cache of 100 records."""
    with jitslab.SlabCache("arrays", RECORD, capacity=100, init="zero") as cache:
        yield cache


@pytest.fixture
def handles(cache):
    """Return the handles of five records, x being 0 to 4."""
    handles = cache.alloc_many(5)
    cache.records["x"][cache.slots(handles)] = np.arange(5.0)
    return handles


FORMS = {"array": np.asarray, "list": lambda h: h.tolist(), "unsigned": lambda h: h.astype(np.uint64), "step": lambda h: h}


@pytest.mark.parametrize("form", FORMS)
def test_array_of_handles_reads_copies(cache, handles, form):
    """Of records and of fields, in the order of the handles, also twice the same."""
    wanted = FORMS[form](handles[::-2])

    assert [4.0, 2.0, 0.0] == cache[wanted]["x"].tolist() == cache[wanted, "x"].tolist()
    assert RECORD == cache[wanted].dtype
    assert (3, 2) == cache[wanted, "v"].shape
    cache[wanted]["x"][:] = 9
    cache[wanted, "x"][:] = 9
    assert 4.0 == cache[handles[4]]["x"]
    assert [1.0, 1.0] == cache[handles[[1, 1]], "x"].tolist()
    assert 2.0 == cache[handles[2], "x"] == cache[int(handles[2]), "x"]
    assert (0,) == cache[[]].shape == cache[handles[:0], "x"].shape


def test_array_of_handles_writes_records(cache, handles):
    """One for each, one for all; arrays, tuples and lists of tuples."""
    values = np.zeros(5, RECORD)
    values["x"] = [9, 8, 7, 6, 5]
    cache[handles] = values
    assert [9, 8, 7, 6, 5] == cache[handles, "x"].tolist()
    cache[handles[:2].tolist()] = (1.5, 2, (3, 4), (5,))
    assert [(1.5, 2), (1.5, 2), (7.0, 0)] == cache[handles[:3]][["x", "n"]].tolist()
    cache[handles[:2]] = [(1.0, 2, (3, 4), (5,)), (6.0, 7, (8, 9), (10,))]
    assert [1.0, 6.0] == cache[handles[:2], "x"].tolist()
    cache[handles[[3, 3]]] = values[:2]
    assert 8.0 == cache[handles[3], "x"]


def test_array_of_handles_writes_a_field(cache, handles):
    """Broadcast, sub-arrays and nested records, too; also of one handle."""
    cache[handles, "n"] = [1, 2, 3, 4, 5]
    cache[handles, "v"] = (3, 4)
    cache[handles, "at"] = (7,)
    cache[handles[0], "x"] = 2.5

    assert [1, 2, 3, 4, 5] == cache[handles, "n"].tolist()
    assert [[3.0, 4.0]] * 5 == cache[handles, "v"].tolist()
    assert [7] * 5 == cache[handles, "at"]["a"].tolist()
    assert [2.5, 1.0] == cache[handles[:2], "x"].tolist()
    cache[handles, "n"] += 1
    assert [2, 3, 4, 5, 6] == cache[handles, "n"].tolist()


REFUSED = {
    "stale": (lambda c, h: c[h[[0, 4]], "x"], jitslab.StaleHandleError),
    "stale, written": (lambda c, h: c.__setitem__(h, np.zeros(5, RECORD)), jitslab.StaleHandleError),
    "stale, field": (lambda c, h: c.__setitem__((h, "n"), 9), jitslab.StaleHandleError),
    "NULL": (lambda c, h: c[[0]], jitslab.NullHandleError),
    "floats": (lambda c, h: c[[1.0]], jitslab.HandleTypeError),
    "booleans": (lambda c, h: c[np.ones(5, bool)], jitslab.HandleTypeError),
    "two dimensions": (lambda c, h: c[h.reshape(1, 5)], jitslab.ArrayError),
    "tuple": (lambda c, h: c[tuple(h[:2])], jitslab.HandleTypeError),
    "slice": (lambda c, h: c[:5], jitslab.HandleTypeError),
    "no field": (lambda c, h: c[h[:4], "y"], jitslab.FieldNameError),
    "no field, written": (lambda c, h: c.__setitem__((h[:4], "y"), 1), jitslab.FieldNameError),
    "field of no handle": (lambda c, h: c["h", "x"], jitslab.HandleTypeError),
    "too many": (lambda c, h: c.__setitem__(h[:2], np.ones(3, RECORD)), jitslab.ArrayError),
    "another dtype": (lambda c, h: c.__setitem__(h[:2], np.ones(2, [("x", "f8")])), jitslab.FieldTypeError),
    "out of range": (lambda c, h: c.__setitem__((h[:3], "n"), [1, 2, 300]), jitslab.FieldRangeError),
    "text": (lambda c, h: c.__setitem__((h[:3], "n"), "1"), jitslab.FieldTypeError),
}


@pytest.mark.parametrize("crime", REFUSED)
def test_refused_array_changes_nothing(cache, handles, crime):
    """Every kind has its own error."""
    cache.free(handles[4])
    before = cache.records.copy()
    use, error = REFUSED[crime]

    with pytest.raises(error) as caught:
        use(cache, handles)
    assert type(caught.value) is error
    assert (before == cache.records).all()


def test_refused_batch_says_where():
    """By the positions; of one handle in a key with a field there are none."""
    with jitslab.SlabCache("arrays", RECORD, capacity=10) as cache:
        handles = cache.alloc_many(3)
        cache.free(handles[1])
        with pytest.raises(jitslab.StaleHandleError, match="^1 of 3 handles refused, at 1; the first: slot ") as caught:
            cache[handles]
        assert (1,) == caught.value.positions


def test_misspelt_field_is_told_the_near_ones():
    """As by a guard."""
    with jitslab.SlabCache("weights", np.dtype([("weight", "f8")]), capacity=10) as cache:
        text = "^the records of cache 'weights' have no field 'wieght'; near it: 'weight'$"
        with pytest.raises(jitslab.FieldNameError, match=text):
            cache[cache.alloc_many(2), "wieght"]


def test_is_live_of_an_array_is_an_array(cache, handles):
    """One bool a handle, whatever number it is."""
    cache.free(handles[1])

    assert [True, False, True, True, True] == cache.is_live(handles).tolist() == cache.is_live(handles.tolist()).tolist()
    assert bool == cache.is_live(handles).dtype
    assert [False] * 4 == cache.is_live([0, -1, 5, 1 << 70]).tolist()
    assert [] == cache.is_live([]).tolist()
    assert cache.is_live(handles[0]) is True
    assert cache.is_live(0) is False


@pytest.mark.parametrize("thing", [1.0, "1", None, (1,), np.float64(1), [1.0], ["x"], np.ones(2, bool)])
def test_is_live_of_no_handle_is_refused(cache, thing):
    """Not answered by False."""
    with pytest.raises(jitslab.HandleTypeError):
        cache.is_live(thing)


def test_calls_of_one_handle_name_those_of_many(cache, handles):
    """`free` and `in`."""
    text = r"^free takes one handle, got ndarray; free_many\(handles\) takes many$"
    with pytest.raises(jitslab.HandleTypeError, match=text):
        cache.free(handles)
    with pytest.raises(jitslab.HandleTypeError, match=r"^`in` takes one handle, got list; is_live\(handles\) takes many$"):
        assert handles.tolist() in cache
    assert 5 == len(cache)


class Frame:
    """Columns that are asked for as those of a DataFrame."""

    def __init__(self, **columns):
        self.columns = columns

    def keys(self):
        """Return the names."""
        return self.columns.keys()

    def __getitem__(self, name):
        return self.columns[name]


WAYS = {
    "array": np.array([(1.0, 2, (3, 4), (5,)), (6.0, 7, (8, 9), (10,))], RECORD),
    "tuples": [(1.0, 2, (3, 4), (5,)), (6.0, 7, (8, 9), (10,))],
    "columns": {"x": [1, 6], "n": np.array([2, 7]), "v": [[3, 4], [8, 9]], "at": [(5,), (10,)]},
    "frame": Frame(x=(1, 6), n=np.array([2, 7]), v=np.array([[3, 4], [8, 9]]), at=np.array([(5,), (10,)], RECORD["at"])),
}


@pytest.mark.parametrize("way", WAYS)
def test_extend_makes_records(cache, way):
    """Of whole records or of columns: one handle for each."""
    handles = cache.extend(WAYS[way])

    assert np.int64 == handles.dtype
    assert WAYS["array"].tobytes() == cache[handles].tobytes()
    assert 2 == len(cache)


def test_extend_by_some_columns(cache):
    """The other fields are those of a new record; single values are for all."""
    used = cache.alloc_many(5)
    cache[used] = (9.0, 9, (9, 9), (9,))
    cache.free_many(used)
    handles = cache.extend({"n": 7, "x": np.arange(3)})

    assert [(0.0, 7, 0), (1.0, 7, 0), (2.0, 7, 0)] == [(r["x"], r["n"], r["at"]["a"]) for r in cache[handles]]
    assert 0 == cache.extend([]).size == cache.extend({"x": []}).size == cache.extend(np.zeros(0, RECORD)).size


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"x": [1, 2], "n": [1, 2, 3]}, jitslab.ArrayError),
        ({"x": 1}, jitslab.ArrayError),
        ({}, jitslab.ArrayError),
        (np.zeros((2, 2), RECORD), jitslab.ArrayError),
        (np.zeros((), RECORD), jitslab.ArrayError),
        (5, jitslab.ArrayError),
        ([1, 2], jitslab.FieldTypeError),
        (np.zeros(2, [("x", "f8")]), jitslab.FieldTypeError),
        ({"y": [1]}, jitslab.FieldNameError),
        ({5: [1]}, jitslab.FieldNameError),
        ({"n": [300]}, jitslab.FieldRangeError),
        ({"n": ["a"]}, jitslab.FieldTypeError),
        (np.zeros(101, RECORD), jitslab.CacheFullError),
    ],
    ids=str,
)
def test_refused_extend_allocates_nothing(cache, values, error):
    """All or none."""
    with pytest.raises(error):
        cache.extend(values)
    assert 0 == len(cache)

"""Errors as values: they go from process to process and are copied, with all that they say."""

import copy
import inspect
import pickle
import types

import numba
import numpy as np
import pytest
from program import run_python

import jitslab
from jitslab import errors

CLASSES = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, (Exception, Warning))}
VALUES = {
    "positions": (1, 3),
    "law": 3,
    "slab": 7,
    "count": 2,
    "first": 1 << 40,
    "where": "a.py:3",
    "report": 5,
    "wanted": "wieght",
    "fields": ("weight", "id"),
    "broken": ("1.records, page 7: it has another sum",),
}
COPIES = {f"pickle {n}": lambda error, n=n: pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
COPIES |= {"copy": copy.copy, "deepcopy": copy.deepcopy}


def made(cls):
    """Return an error with all its parameters set: those of jitslab's own `__init__` by VALUES."""
    own = cls.__init__ if isinstance(cls.__init__, types.FunctionType) else None
    given = {} if own is None else {name: VALUES[name] for name in list(inspect.signature(own).parameters)[2:]}
    return cls("what happened", **given)


def assert_same(error, again):
    """Assert that nothing was lost."""
    assert type(error) is type(again)
    assert error.args == again.args
    assert vars(error) == vars(again)
    assert str(error) == str(again)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", CLASSES)
def test_error_is_pickled_and_copied_with_its_fields(name, how):
    """Each class, by each protocol; also with a note, and as one made without arguments."""
    error = made(CLASSES[name])
    error.__notes__ = ["of the user's"]

    assert_same(error, COPIES[how](error))
    assert_same(CLASSES[name](), COPIES[how](CLASSES[name]()))


def test_every_error_that_is_public_is_walked():
    """A class elsewhere would escape the tests here."""
    public = {name for name, it in vars(jitslab).items() if isinstance(it, type) and issubclass(it, (Exception, Warning))}
    everywhere = {errors.SlabError}
    while more := {sub for cls in everywhere for sub in cls.__subclasses__()} - everywhere:
        everywhere |= more

    assert public <= set(CLASSES)
    assert {cls for cls in everywhere if cls.__module__.startswith("jitslab")} <= set(CLASSES.values())
    assert {"positions", "law", "slab", "count", "first", "where", "report"} <= {
        name for cls in CLASSES.values() for name in vars(made(cls))
    }


@numba.njit
def use_null(cache):
    """Read the record of a handle that is none: a fault."""
    cache.record(0)


def raised_by_use():
    """Return errors as they come out of a cache, with whatever Python adds to them on the way."""
    with jitslab.SlabCache("errors", np.dtype([("weight", "f8"), ("n", "u1")]), capacity=4) as cache, cache.allocate() as it:
        use_null(cache)
        uses = [
            cache.raise_faults,
            lambda: cache.free_many([1 << 62, 5]),
            lambda: it["wieght"],
            lambda: setattr(it, "n", 300),
            lambda: jitslab.caches["errers"],
            lambda: cache.alloc_many(9),
            it.__copy__,
        ]
        for use in uses:
            with pytest.raises(jitslab.SlabError) as caught:
                use()
            yield caught.value


def test_errors_that_were_raised_go_to_other_processes():
    """As they were, though the guard or the cache they speak of cannot be pickled."""
    seen = set()
    for error in raised_by_use():
        seen.add(type(error))
        assert_same(error, pickle.loads(pickle.dumps(error)))
        assert_same(error, copy.deepcopy(error))

    assert {errors.FaultError, errors.ForeignHandleError, errors.FieldNameError} < seen


def test_pool_hands_on_the_errors_of_its_workers():
    """A pool whose parent cannot read the error of a worker waits for ever."""
    program = """
import multiprocessing
from jitslab import errors

def work(name):
    raise {"FaultError": errors.FaultError("f", 2, 9), "LawError": errors.LawError("l", 3, 7)}[name]

with multiprocessing.get_context("fork").Pool(1) as pool:
    for name in ("FaultError", "LawError"):
        try:
            pool.apply_async(work, (name,)).get(60)
        except errors.SlabError as error:
            print(type(error).__name__, vars(error))
"""
    expected = "FaultError {'count': 2, 'first': 9, 'where': '', 'report': None}\nLawError {'law': 3, 'slab': 7}\n"
    assert expected == run_python(program)

"""Processes that are killed at any instant or system call, and power cuts on paper: see pool_crash.py for the long versions."""

import functools
import os
import random
import shutil
import sys
import tempfile

import pool_crash
import pytest
from paper_disk import NEVER, Killed, Medium, Recorder

import jitslab
from jitslab.pool import calls

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, and pipes of a megabyte"),
]


@pytest.fixture(scope="module")
def folder():
    """Return a folder in memory, with all compiled; journals are short."""
    path = tempfile.mkdtemp(prefix="pool_crash_", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    with pool_crash.small_sizes():
        pool_crash.warm_up(path)
        yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def system():
    """Have the system as it is again after each test."""
    before = calls.system
    yield
    calls.system = before


# --- Death ---


def test_kill_at_any_instant(folder):
    """The pool is as the last commit that was reported left it, or as the one in flight."""
    assert 20 == sum(pool_crash.kill(folder, 20, most=300).values())


@pytest.mark.parametrize("name", pool_crash.ACTS)
def test_death_at_system_calls(folder, name):
    """As after kill -9; a write may be half done."""
    n_dead, _ = pool_crash.die_at_calls(folder, name, every=6)

    assert n_dead > 0


def test_death_in_recoveries(folder):
    """A process that opens the pool after a death dies, too."""
    _, n_again = pool_crash.die_at_calls(folder, "drop_cache", every=4, again=True)

    assert n_again > 0


# --- Power ---


def test_power_cuts(folder):
    """Also of the recovery, and of a pool whose process was killed before."""
    seen = pool_crash.power(folder, 250)

    assert 250 == sum(seen.values())
    assert {"commit", "commit, which is there", "create_cache", "second: commit"} <= set(seen)


@pytest.mark.parametrize("kind", ["sync", "sync folder"])
def test_power_cuts_find_a_disk_that_lies(folder, kind):
    """The proof sees it if the syncs of one kind are not done."""
    with pytest.raises(pool_crash.WrongImageError):
        pool_crash.power(folder, 300, leaves_out={kind})


def put(path, files):
    """Have a folder hold some files, or be gone."""
    shutil.rmtree(path, ignore_errors=True)
    if files is not None:
        os.mkdir(path)
        for name, file in files.items():
            file.write_to(f"{path}/{name}")


def worst_image(log):
    """Return what a cut behind a log leaves if all is lost that was not synced."""
    medium = Medium(None)
    for event in log:
        medium.follow(event)
    return medium.image(random.Random(0), shares=(0.0,))


def rename_and_stop(recorder, *names, **folders):
    """Rename a file, and end the process."""
    Recorder.rename(recorder, *names, **folders)
    recorder.left = 0


def make_cache(pool):
    """Make one."""
    pool.create_cache("more", pool_crash.ROOT, capacity=10)


def drop_cache(pool):
    """Drop one."""
    pool.drop_cache("few")


@pytest.mark.parametrize("act", [make_cache, drop_cache])
def test_what_a_killed_process_renamed_lasts_when_the_pool_was_opened_again(folder, act):
    """It was read from the memory of the system, which a cut would lose."""
    path, found = f"{folder}/renamed", []

    def work(recorder):
        pool = jitslab.open_pool(path, "x")
        pool.create_cache("few", pool_crash.ROOT, capacity=10)
        recorder.rename = functools.partial(rename_and_stop, recorder)
        with pytest.raises(Killed):
            act(pool)
        pool.close(commit=False)
        del recorder.rename
        recorder.left = NEVER
        with jitslab.open_pool(path) as pool:
            found.extend(pool.caches)

    put(path, worst_image(pool_crash.recorded(path, None, work, ())))

    with jitslab.open_pool(path, "r+") as pool:
        assert found == list(pool.caches)
    assert found == (["few", "more"] if act is make_cache else [])


def test_a_folder_that_a_killed_process_made_lasts_when_the_pool_was_opened_again(folder):
    """The name of the folder is synced by the process that makes the pool in it."""
    path = f"{folder}/made"

    def work(recorder):
        recorder.left = 1  # it makes the folder, and does not sync its parent
        with pytest.raises(Killed):
            jitslab.open_pool(path)
        recorder.left = NEVER
        jitslab.open_pool(path).close()

    put(path, worst_image(pool_crash.recorded(path, None, work, ())))

    with jitslab.open_pool(path, "r+") as pool:
        assert 0 == pool.number


def test_power_cuts_while_a_pool_without_a_root_is_made(folder):
    """Its meta data last only after the names of its other files."""
    path, rng = f"{folder}/no_root", random.Random(0)
    log = pool_crash.recorded(path, None, lambda recorder: jitslab.open_pool(path, "x").close(), ())
    medium = Medium(None)
    for event in log:
        medium.follow(event)
        for _ in range(5):
            put(path, medium.image(rng))
            with jitslab.open_pool(path) as pool:
                assert 0 == pool.number

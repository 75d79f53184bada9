"""The system calls on the files of a pool: what `os` alone would leave half done, and names that lead elsewhere."""

import errno
import os
import subprocess
import sys

import pytest

from jitslab import errors
from jitslab.machine.addresses import LINUX
from jitslab.pool import calls

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files are opened by name within a folder")


@pytest.fixture
def folder(tmp_path):
    """Make and open a folder."""
    calls.make_folder(str(tmp_path / "pool"))
    file = calls.open_folder(str(tmp_path / "pool"))
    yield file
    calls.close(file)


@pytest.fixture
def file(folder):
    """Make and open a file of it."""
    file = calls.open_file(folder, "a", create=True)
    yield file
    calls.close(file)


def test_folder_and_file_are_the_owner_s_alone(tmp_path, folder, file):
    """Whatever the umask."""
    assert 0o700 == os.stat(tmp_path / "pool").st_mode & 0o777
    assert 0o600 == os.fstat(file).st_mode & 0o777 | 0o600
    assert ["a"] == calls.names_in(folder)
    assert not os.get_inheritable(file)
    assert not os.get_inheritable(folder)


def test_folder_is_no_link(tmp_path, folder):
    """A link could lead anywhere."""
    os.symlink(tmp_path / "pool", tmp_path / "link")
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        calls.open_folder(str(tmp_path / "link"))


def test_file_is_made_once(folder, file):
    """And opened to write only if that is asked for."""
    with pytest.raises(FileExistsError):
        calls.open_file(folder, "a", create=True)
    reader = calls.open_file(folder, "a")
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.write_at(reader, b"x", 0)
    calls.close(reader)


def test_device_is_no_file(tmp_path):
    """Its end would never come."""
    folder = calls.open_folder("/dev")
    with pytest.raises(errors.CorruptPoolError, match="^null of the pool is no regular file$"):
        calls.open_file(folder, "null")
    calls.close(folder)


def test_pieces_are_written_one_behind_the_other(file, monkeypatch):
    """Empty ones, more than one call takes, and if the system writes a part only."""

    class Slow(calls.System):
        def pwritev(self, file, pieces, at):
            return os.pwrite(file, b"".join(pieces)[:1000], at)

    pieces = [bytes([k % 251]) * (k % 7) for k in range(3000)]
    for system in (calls.System(), Slow()):
        monkeypatch.setattr(calls, "system", system)
        calls.write_many_at(file, pieces, 5)

        assert bytes(5) + b"".join(pieces) == calls.read_at(file, 1 << 20, 0)
        assert b"".join(pieces)[10:20] == calls.read_at(file, 10, 15)

        buffer = bytearray(1 << 20)

        assert calls.size_of(file) == calls.read_into(file, buffer, 0)
        assert bytes(buffer[: calls.size_of(file)]) == calls.read_at(file, 1 << 20, 0)

        os.ftruncate(file, 0)


def test_file_is_lengthened_and_never_cut(file):
    """What is new reads as zeros."""
    calls.write_at(file, b"abc", 0)
    calls.lengthen(file, 10)
    calls.lengthen(file, 5)

    assert b"abc" + bytes(7) == calls.read_at(file, 100, 0)


def test_punched_bytes_read_as_zeros(file):
    """If the file system can; the length stays."""
    calls.write_at(file, b"x" * (1 << 16), 0)
    calls.sync(file)
    if not calls.punch(file, 1 << 14, 1 << 14):
        pytest.skip("no holes here")

    assert b"x" * (1 << 14) + bytes(1 << 14) + b"x" * (1 << 15) == calls.read_at(file, 1 << 17, 0)
    assert calls.has_holes(file, 1 << 16)
    assert not calls.has_holes(file, 1 << 14)


@pytest.mark.skipif(not LINUX, reason="holes are told by the system")
def test_written_file_has_no_holes(file):
    """One that was only lengthened has."""
    calls.write_at(file, bytes(1 << 16), 0)
    calls.sync(file)

    assert not calls.has_holes(file, 1 << 16)
    assert calls.has_holes(file, (1 << 16) + 1)


def test_rename_replaces(folder, file):
    """The new file has the name, and the old one none."""
    calls.write_at(file, b"old", 0)
    new = calls.open_file(folder, "b", create=True)
    calls.write_at(new, b"new", 0)
    calls.close(new)
    calls.rename(folder, "b", "a")
    calls.sync_folder(folder)
    again = calls.open_file(folder, "a")

    assert b"new" == calls.read_at(again, 9, 0)
    assert ["a"] == calls.names_in(folder)

    calls.close(again)
    calls.unlink(folder, "a")

    assert [] == calls.names_in(folder)


def test_lock_is_of_the_open_file(folder, file):
    """Another descriptor waits or goes away; one that is closed, also by the end of its process, has none."""
    other = calls.open_file(folder, "a")

    assert calls.lock(file)
    assert not calls.lock(other)
    assert not calls.lock(other, shared=True)

    calls.unlock(file)

    assert calls.lock(file, shared=True)
    assert calls.lock(other, shared=True)
    assert not calls.lock(other)

    calls.close(other)

    assert calls.lock(file)

    calls.unlock(file)
    program = f"""
import fcntl, os, sys
file = os.open("a", os.O_RDONLY, dir_fd={folder})
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[folder], text=True, **pipes) as child:
        assert "locked\n" == child.stdout.readline()
        assert not calls.lock(file)

        child.kill()
    assert calls.lock(file, wait=True)


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (errno.ENOSPC, errors.PoolFullError),
        (errno.EDQUOT, errors.PoolFullError),
        (errno.EFBIG, errors.PoolFullError),
        (errno.EIO, errors.PoolError),
        (errno.EACCES, errors.PoolPathError),
        (errno.EROFS, errors.PoolPathError),
        (errno.ENOENT, errors.PoolPathError),
    ],
)
def test_error_of_the_system_becomes_one_of_pools(code, cls):
    """It says what was being done, and why it failed."""
    error = calls.pool_error(OSError(code, os.strerror(code)), "writing")

    assert cls is type(error)
    assert str(error).startswith(f"writing: {os.strerror(code).lower()}")

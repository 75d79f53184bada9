"""
A disk on paper: what may be on the medium after the power is cut, as far as a file system promises anything at all.

`Recorder` stands in place of `jitslab.pool.calls.system`; it does every call on the files of one pool, and notes each that
changes something.  `Medium` passes along such a log, and makes images of what a cut there may leave:

- of each sector of 512 bytes any version since the last sync of its file, so none, some or all of the writes;
- any length that the file had since then, and for a write that makes the file longer any length on the way;
- of the changes of names (create, rename, unlink, mkdir) since the last sync of their folder any subset; a rename is there as a
  whole or not at all, and a sync of a file says nothing about its name.

What is synced stays.  A file that is longer than what was written to it reads as zeros there.
"""

import collections
import os

from jitslab.pool import calls

SECTOR = 512
SHARES = 0.0, 0.1, 0.5, 0.9, 0.99, 1.0  # of what was not synced, how much is kept
NEVER = 1 << 60


class Killed(BaseException):
    """The end of a process, as far as its system calls are concerned."""


class Recorder(calls.System):
    """
    The system, which notes what was changed in the folder of one pool; syncs are noted only.

    If `left` is set, so many calls that change or sync something are done, and each one from there on raises `Killed`.

    Parameters
    ----------
    path : str
        Of the folder.
    files : dict of str to File, or None
        What is in the folder at the start; None: it is not there.
    leaves_out : collection of str
        Kinds of syncs that the disk says it did, and did not: ``"sync"`` of files, ``"sync folder"``, ``"sync parent"``.
    """

    def __init__(self, path, files, leaves_out=()):
        self.path, self.leaves_out, self.log, self.left = path, leaves_out, [], NEVER
        self.names = {name: number for number, name in enumerate(files or ())}
        self.n_files = len(self.names)
        self.open_files = {}  # descriptor to number of the file, or to its kind of sync

    def note(self, *what):
        """Note a change, or what the caller knows now."""
        if what[0] not in self.leaves_out:
            self.log.append(what)

    def count(self):
        """Count a call that changes or syncs something; raise if it, and all later ones, are not done."""
        self.left -= 1
        if self.left < 0:
            raise Killed

    def open(self, name, flags, mode=0o777, *, dir_fd=None):
        """Open a file of the folder, the folder or its parent."""
        if flags & os.O_CREAT:
            self.count()
        file = os.open(name, flags, mode, dir_fd=dir_fd)
        if dir_fd is None:
            self.open_files[file] = "sync folder" if name == self.path else "sync parent"
            return file
        if flags & os.O_CREAT:
            self.names[name] = self.n_files
            self.note("create", name, self.n_files)
            self.n_files += 1
        self.open_files[file] = self.names[name]
        return file

    def mkdir(self, path, mode):
        """Make the folder."""
        self.count()
        os.mkdir(path, mode)
        self.note("mkdir")

    def rename(self, old, new, *, src_dir_fd, dst_dir_fd):
        """Rename a file."""
        self.count()
        os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.names[new] = self.names.pop(old)
        self.note("rename", old, new, self.names[new])

    def unlink(self, name, *, dir_fd):
        """Remove a file."""
        self.count()
        os.unlink(name, dir_fd=dir_fd)
        del self.names[name]
        self.note("unlink", name)

    def pwrite(self, file, data, at):
        """Write."""
        self.count()
        self.note("write", self.open_files[file], at, bytes(data))
        return os.pwrite(file, data, at)

    def pwritev(self, file, pieces, at):
        """Write pieces."""
        return self.pwrite(file, b"".join(pieces), at)

    def ftruncate(self, file, n):
        """Make a file shorter or longer."""
        self.count()
        os.ftruncate(file, n)
        self.note("truncate", self.open_files[file], n)

    def punch(self, file, at, n):
        """Give space back."""
        self.count()
        is_done = super().punch(file, at, n)
        if is_done:
            self.note("write", self.open_files[file], at, bytes(n))
        return is_done

    def fdatasync(self, file):
        """Note a sync of a file."""
        self.count()
        self.note("sync", self.open_files[file])

    def fsync(self, folder):
        """Note a sync of a folder."""
        self.count()
        self.note(self.open_files[folder])


class File:
    """What is in a file: bytes, behind which it has zeros up to its length."""

    def __init__(self, data=b"", length=0):
        self.data, self.length = bytearray(data), max(length, len(data))

    def copy(self):
        """Return another one with the same."""
        return File(self.data, self.length)

    def change(self, kind, at, data=b""):
        """Have a write or a truncation happen."""
        if kind == "truncate":
            del self.data[at:]
            self.length = at
            return
        self.data.extend(bytes(max(at - len(self.data), 0)))
        self.data[at : at + len(data)] = data
        self.length = max(self.length, len(self.data))

    def write_to(self, path):
        """Write it to a real file."""
        with open(path, "wb") as file:
            file.write(self.data)
            file.truncate(self.length)


class Medium:
    """
    The disk at one place of a log.

    Parameters
    ----------
    files : dict of str to File, or None
        What is in the folder at the start, and synced; None: it is not there.
    """

    def __init__(self, files):
        self.is_there = files is not None
        self.names = {name: number for number, name in enumerate(files or ())}
        self.files = {number: file.copy() for number, file in enumerate((files or {}).values())}
        self.of_names = []  # changes that are not synced
        self.of_files = {}  # number of the file to such changes
        self.of_parent = []

    def follow(self, event):
        """Pass over one event."""
        kind, *rest = event
        if kind == "mkdir":
            self.of_parent = [event]
        elif kind == "sync parent":
            self.is_there, self.of_parent = self.is_there or bool(self.of_parent), []
        elif kind in ("create", "rename", "unlink"):
            self.of_names.append(event)
        elif kind == "sync folder":
            change_names(self.names, self.of_names)
            self.of_names = []
        elif kind in ("write", "truncate"):
            self.of_files.setdefault(rest[0], []).append((kind, *rest[1:]))
        elif kind == "sync":
            file = self.files.setdefault(rest[0], File())
            for change in self.of_files.pop(rest[0], ()):
                file.change(*change)

    def image(self, rng, shares=SHARES):
        """
        Return what the folder may hold if the power is cut here: its files by name, or None if it is not there.

        Of what was not synced, about one of the shares is kept.
        """
        if not self.is_there and (not self.of_parent or rng.random() >= rng.choice(shares)):
            return None
        names, share = dict(self.names), rng.choice(shares)
        change_names(names, [event for event in self.of_names if rng.random() < share])
        share = rng.choice(shares)
        return {name: self._file(number, share, rng) for name, number in names.items()}

    def _file(self, number, share, rng):
        """Return what a file may hold."""
        file, changes = self.files.get(number, File()).copy(), self.of_files.get(number, ())
        if share == 1:
            for change in changes:
                file.change(*change)
        if share in (0, 1) or not changes:
            return file
        length = length_after(file.length, changes, share, rng)
        kept = collections.Counter(sector for change in changes for sector in sectors_of(*change))  # of each, how many writes
        for sector, n in kept.items():
            kept[sector] = n if rng.random() < share else rng.randrange(n)
        for kind, at, *new in changes:
            for sector in sectors_of(kind, at, *new):
                if kept[sector] > 0:
                    kept[sector] -= 1
                    first, end = max(sector * SECTOR, at), min((sector + 1) * SECTOR, at + len(new[0]))
                    file.change("write", first, new[0][first - at : end - at])
        file.change("truncate", length)
        return file


def change_names(names, events):
    """Have some changes of names happen, each of which may come without those before it."""
    for kind, name, *rest in events:
        if kind == "create":
            names[name] = rest[0]
        elif kind == "unlink":
            names.pop(name, None)
        else:
            new, number = rest
            if names.get(name) == number:
                del names[name]
            names[new] = number


def sectors_of(kind, at, data=b""):
    """Return the numbers of the sectors that a change writes to."""
    return range(at // SECTOR, -(-(at + len(data)) // SECTOR)) if kind == "write" else range(0)


def length_after(length, changes, share, rng):
    """Return a length that a file may have after some changes that are not synced: one of those it had meanwhile."""
    lengths = [length]
    for kind, at, *new in changes:
        end = at if kind == "truncate" else max(at + len(new[0]), lengths[-1])
        if end > lengths[-1] and kind == "write":
            lengths.append(rng.randint(lengths[-1], end))
        lengths.append(end)
    return lengths[-1] if rng.random() < share else rng.choice(lengths)

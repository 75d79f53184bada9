"""The laws of a pool: each is broken, found by its number and its place, and repaired as far as the files allow."""

import os
import shutil
import struct

import numpy as np
import pytest
from test_pool_faults import image

import jitslab
from jitslab.pool import check
from jitslab.pool.format import BLOCK, META, WORDS_OFFSET
from jitslab.pool.frames import FRAME_HEAD, LINE

NODE = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
ROOT = np.dtype([("head", jitslab.link("nodes")), ("n", "i8")])
CHECKED, LOGGED, LEFT = 5000, 700, 3  # records before the checkpoint, and after it; commits in the journal


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return the path of a pool with data files, three commits in its journal, and two caches."""
    path = str(tmp_path_factory.mktemp("pools") / "original")
    with jitslab.open_pool(path, "x", root=ROOT) as pool:
        nodes = pool.create_cache("nodes", NODE, capacity=100_000)
        pool.create_cache("wide", np.dtype([("x", "u1", 5000)]), capacity=100).alloc_many(10, x=7)
        handles = nodes.alloc_many(CHECKED, value=1.0, next=0)
        pool.root["head"] = handles[0]
        pool.commit()
        pool.checkpoint()
        for n in range(LEFT):
            nodes.alloc_many(LOGGED, value=2.0, next=handles[n])
            pool.root["n"] = n
            pool.commit()
    return path


@pytest.fixture
def path(original, tmp_path):
    """Return the path of a copy of it."""
    return shutil.copytree(original, tmp_path / "pool")


def write(path, name, at, data):
    """Write bytes to a file of a pool."""
    with open(path / name, "r+b") as file:
        file.seek(at)
        file.write(data)


def laws(path, **options):
    """Return the numbers of the laws that are broken, each once."""
    return sorted({broken.law for broken in jitslab.check_pool(path, **options)})


def frames_of(path):
    """Return the offset and the length of each commit in the journal."""
    data, at, found = (path / "journal").read_bytes(), BLOCK, []
    salt = np.frombuffer(data, FRAME_HEAD, 1, at)["salt"][0]  # those of an earlier life are behind
    while (head := np.frombuffer(data, FRAME_HEAD, 1, at)[0])["salt"] == salt:
        table = LINE + 24 * int(head["n_entries"])
        length = -(-table // BLOCK) * BLOCK + int(head["n_bytes"])
        found.append((at, length))
        at += length
    return found


def state(path):
    """Return all that a pool holds."""
    with jitslab.open_pool(path, "r") as pool:
        return pool.number, image(pool)


# --- Whole pools ---


def test_a_whole_pool_has_no_broken_law(path):
    """On disk, open to read and open to write; nothing is changed."""
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}

    assert [] == jitslab.check_pool(path, links=True)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path)}
    with jitslab.open_pool(path, "r+") as pool:
        pool.check(links=True)
        with jitslab.open_pool(path, "r") as reader:
            reader.check(links=True)
        pool["nodes"].free_many(pool["nodes"].live()[:100])
        pool.check()


def test_a_whole_pool_needs_no_repair(path):
    """Its files stay, but the name of the last writer."""
    before = {name: (path / name).read_bytes() for name in os.listdir(path) if name != "writer.lock"}

    assert [] == jitslab.repair_pool(path)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path) if name != "writer.lock"}


def test_every_law_has_a_text():
    """P1 to P9."""
    assert list(range(1, 10)) == list(check.LAWS)


def test_a_check_beside_a_writer_holds_up_checkpoints_only(path, monkeypatch):
    """While files are looked at, commits go on."""
    with jitslab.open_pool(path, "r+") as pool:
        done = []
        real = check.Disk.broken_cache

        def broken_cache(disk, entry):
            pool.root["n"] += 1
            done.append((pool.commit(), pool.checkpoint()))
            return real(disk, entry)

        monkeypatch.setattr(check.Disk, "broken_cache", broken_cache)
        assert [] == jitslab.check_pool(path)
        assert [(6, False), (7, False), (8, False)] == done
        assert pool.checkpoint()


def test_caches_that_come_and_go_during_a_check_are_no_damage(path, monkeypatch):
    """The check begins anew."""
    with jitslab.open_pool(path, "r+") as pool:
        real, left = check.Disk.broken_journal, [1]

        def broken_journal(disk):
            if left:
                left.pop()
                pool.drop_cache("wide")
                pool.create_cache("new", NODE, capacity=10).alloc()
                pool.commit()
            return real(disk)

        monkeypatch.setattr(check.Disk, "broken_journal", broken_journal)
        assert [] == jitslab.check_pool(path)
        assert not left


# --- Broken laws ---


def test_broken_meta_data(path):
    """P1; nothing can be repaired."""
    write(path, META, 100, b"\0")

    assert [1] == laws(path)
    with pytest.raises(jitslab.CorruptPoolError, match="cannot be repaired: nothing else says what the pool holds"):
        jitslab.repair_pool(path)


@pytest.mark.parametrize("name", ["1.words", "1.records", "1.sums", "journal", "reader.lock", "writer.lock"])
def test_a_missing_file(path, name):
    """P2, by its name."""
    os.unlink(path / name)
    found = jitslab.check_pool(path)

    assert (2, name) in {(broken.law, broken.file) for broken in found}


def test_a_short_file_of_generations(path):
    """P2."""
    os.truncate(path / "1.words", 65_536)
    found = jitslab.check_pool(path)

    assert [(2, "1.words")] == [(broken.law, broken.file) for broken in found]
    assert "it has 65536 bytes instead of " in str(found[0])


def test_a_short_file_of_records(path):
    """P2 with the pages that are not there; those in the journal are not missed."""
    os.truncate(path / "1.records", 3 * BLOCK)
    (found,) = jitslab.check_pool(path)

    assert (2, "1.records", 3, 768) == (found.law, found.file, found.pages[0], found.slots[0])


@pytest.mark.parametrize(
    ("at", "data", "said"),
    [
        (0, b"x", "its first bytes must be 'jitslabW'"),
        (24, b"\xff\xff", "n_slabs in its head must be 0 .. "),
        (32, b"\1\0\0\0", "first_generation in its head must be even"),
        (32, b"\0\0\0\0", "first_generation in its head must be even"),
        (32, b"\0\0\0\x40", "first_generation in its head must be even"),
        (12, b"\2", "cache in its head must be 1, got 2"),
        (100, b"\1", "zeros must follow its head"),
    ],
)
def test_a_broken_head_of_generations(path, at, data, said):
    """P3, with what is wrong."""
    write(path, "1.words", at, data)
    found = [broken for broken in jitslab.check_pool(path) if broken.law == 3]

    assert ["1.words"] == [broken.file for broken in found]
    assert said in str(found[0])


def test_a_page_with_another_sum(path):
    """P4 by page and slots; neighbours are told at once."""
    for page in (5, 6, 9):
        write(path, "1.records", page * BLOCK + 17, b"?")
    found = jitslab.check_pool(path)

    assert [range(5, 7), range(9, 10)] == [broken.pages for broken in found]
    assert "1.records, pages 5 to 6, slots 1280 to 1791: it has another sum (law P4: " in str(found[0])
    with jitslab.open_pool(path, "r") as pool, pytest.raises(jitslab.PoolLawError, match="page") as caught:
        pool.check()
    assert tuple(map(str, found)) == caught.value.broken


def test_a_page_that_the_journal_has_may_have_another_sum(path):
    """The journal has the newest version of it."""
    write(path, "0.records", 3, b"?")
    write(path, "0.sums", 8, b"?")

    assert [] == jitslab.check_pool(path)


def test_a_damaged_commit_in_the_middle(path):
    """P5: known to be lost, since a later one says that it was synced."""
    (_, _), (at, length), _ = frames_of(path)
    write(path, "journal", at + length - 1, b"\xff")
    (found,) = jitslab.check_pool(path)

    assert (5, "journal", range(at // BLOCK, at // BLOCK + 1)) == (found.law, found.file, found.pages)
    assert "commit 4 is damaged, and a later one follows it" in str(found)


def test_a_damaged_last_commit_is_one_that_was_not_finished(path):
    """No law is broken, and the pool is as the commit before."""
    at, length = frames_of(path)[-1]
    write(path, "journal", at + length - 1, b"\xff")

    assert [] == jitslab.check_pool(path)
    assert 4 == state(path)[0]


def test_generations_behind_the_slabs(path):
    """P7 by slots, on the last page of the slabs and far behind."""
    with jitslab.open_pool(path, "r") as pool:
        slots = pool["nodes"]._memory.n_slabs << pool["nodes"]._memory.geometry.shift
    write(path, "1.words", WORDS_OFFSET + 4 * slots, struct.pack("<3I", 1, 2, 3))
    write(path, "1.words", WORDS_OFFSET + 4 * 90_000, struct.pack("<I", 5))
    found = [broken for broken in jitslab.check_pool(path) if broken.law == 7]

    assert {"1.words"} == {broken.file for broken in found}
    assert range(90_000, 90_001) in [broken.slots for broken in found]


def test_dangling_links(path):
    """P8, if it is asked for."""
    with jitslab.open_pool(path, "r+") as pool:
        nodes = pool["nodes"]
        nodes[int(nodes.live()[77])]["next"] = 12345
        pool.root["head"] = 99

    assert [] == laws(path)
    found = jitslab.check_pool(path, links=True)
    assert [(8, "0.records", range(1)), (8, "1.records", range(77, 78))] == [(b.law, b.file, b.slots) for b in found]
    assert "field 'next' of cache 'nodes' has 1 dangling links" in str(found[1])


def test_links_to_a_cache_that_the_pool_does_not_have(path):
    """P8: they lead nowhere."""
    with jitslab.open_pool(path, "r+") as pool:
        pool.create_cache("lost", np.dtype([("x", jitslab.link("gone"))]), capacity=5)
    (found,) = jitslab.check_pool(path, links=True)

    assert (8, "3.records") == (found.law, found.file)
    assert "links to cache 'gone', which is not found" in str(found)


def test_no_root_or_several(path):
    """P9."""
    write(path, "journal", BLOCK, bytes(os.path.getsize(path / "journal") - BLOCK))
    write(path, "0.words", WORDS_OFFSET, struct.pack("<I", 8))
    write(path, "0.sums", 0, bytes(8))
    (found,) = jitslab.check_pool(path)

    assert 9 == found.law
    assert jitslab.repair_pool(path)[-1] == "the root was not live: it is a new record"
    assert [] == jitslab.check_pool(path)


# --- Repair ---


def test_orphans_are_removed(path):
    """Files of caches that were being made."""
    (path / "17.words").write_bytes(b"x")

    assert ["17.words was removed: it is of no cache"] == jitslab.repair_pool(path)


@pytest.mark.parametrize("name", ["reader.lock", "writer.lock"])
def test_a_missing_file_of_locks_is_made(path, name):
    """It holds nothing."""
    before = state(path) if name == "writer.lock" else None
    os.unlink(path / name)
    jitslab.repair_pool(path)

    assert [] == jitslab.check_pool(path)
    assert before in (None, state(path))


def test_commits_before_a_damaged_one_are_kept(path):
    """What is cut off is in a file beside the journal."""
    (first, _), (at, length), (last, length_of_last) = frames_of(path)
    cut = (path / "journal").read_bytes()[at:]
    write(path, "journal", at + length - 1, b"\xff")
    done = jitslab.repair_pool(path)

    assert f"the journal was cut at byte {at}; the {len(cut)} bytes behind it are in journal.cut-{at}.0" in done
    assert cut[length:] == (path / f"journal.cut-{at}.0").read_bytes()[length:].ljust(len(cut) - length, b"\0")
    assert [] == jitslab.check_pool(path)
    with jitslab.open_pool(path, "r+") as pool:
        assert pool.number == 3
        assert len(pool["nodes"]) == CHECKED + LOGGED
        pool.root["n"] = 9
        assert pool.commit() == 4


def test_a_head_of_the_journal_is_proven_by_its_first_commit(path):
    """Nothing is lost."""
    before = state(path)
    write(path, "journal", 0, bytes(1024))
    with pytest.raises(jitslab.CorruptPoolError, match="neither of the heads"):
        jitslab.open_pool(path, "r")
    done = jitslab.repair_pool(path)

    assert "the journal's head was made again, from the first commit, which has its hash" in done
    assert before == state(path)
    assert [] == jitslab.check_pool(path)


def test_a_journal_without_head_and_commits_is_begun_anew(path):
    """The data files have the last checkpoint; the old journal is set aside."""
    write(path, "journal", 0, bytes(BLOCK + 64))
    done = jitslab.repair_pool(path)

    assert "journal was set aside as journal.damaged-0" in done
    assert [] == jitslab.check_pool(path)
    with jitslab.open_pool(path, "r+") as pool:
        assert len(pool["nodes"]) == CHECKED


@pytest.mark.parametrize(("at", "data"), [(0, b"xxxx"), (24, b"\xff\xff"), (32, b"\1"), (0, bytes(64))])
def test_a_head_of_generations_is_made_again(path, at, data):
    """From the generations, and pages in the journal."""
    before = state(path)
    write(path, "1.words", at, data)
    with pytest.raises(jitslab.CorruptPoolError, match=r"1\.words"):
        jitslab.open_pool(path, "r")
    jitslab.repair_pool(path)

    assert [] == jitslab.check_pool(path)
    assert before[1] == state(path)[1]


def test_a_head_of_generations_without_a_journal(path):
    """All records are there, and the cache goes on."""
    with jitslab.open_pool(path, "r+") as pool:
        pool.checkpoint()
    before = state(path)
    write(path, "1.words", 0, bytes(64))
    assert "the head of 1.words was made again: 2 slabs have generations or records" in jitslab.repair_pool(path)
    assert before[1] == state(path)[1]
    with jitslab.open_pool(path, "r+") as pool:
        handles = pool["nodes"].alloc_many(50_000)
        assert len(np.unique(handles)) == 50_000
        pool.check()


def test_another_caches_generations_are_not_taken(path):
    """Swapped files are no damage that a repair could undo."""
    shutil.copy(path / "2.words", path / "1.words")
    done = jitslab.repair_pool(path)

    assert any("it seems to be another file" in text for text in done)
    assert 3 in laws(path)


def test_damaged_pages_are_taken_as_they_are(path):
    """With what is lost."""
    write(path, "1.records", 7 * BLOCK + 8, b"????????")
    done = jitslab.repair_pool(path)

    assert "1.records, page 7, slots 1792 to 2047: taken as it is; what it should be is lost" in done
    assert [] == jitslab.check_pool(path)


def test_a_short_file_of_records_is_lengthened(path):
    """The records that are lost are zeros."""
    os.truncate(path / "1.records", 3 * BLOCK)
    done = jitslab.repair_pool(path)

    assert any(text.startswith("1.records, pages 3 to ") for text in done)
    assert [] == jitslab.check_pool(path)
    with jitslab.open_pool(path, "r") as pool:
        nodes = pool["nodes"]
        values = nodes.records["value"][:CHECKED]
        assert (values[:768] == 1.0).all()
        assert (values[768:4096] == 0.0).all()


def test_a_short_file_of_generations_is_lengthened(path):
    """It can be opened again."""
    length = os.path.getsize(path / "1.words")
    os.truncate(path / "1.words", 65_536)
    done = jitslab.repair_pool(path)

    assert f"1.words had 65536 bytes: lengthened to {length} by zeros" in done
    assert [] == jitslab.check_pool(path)


@pytest.mark.long  # it changes a byte of the sums, which may have had that value
@pytest.mark.parametrize("name", ["1.records", "1.sums"])
def test_a_missing_file_is_made(path, name):
    """Records are zeros then; sums are those of the pages as they are."""
    before = state(path)
    os.unlink(path / name)
    done = jitslab.repair_pool(path)

    assert any(text.startswith(f"{name} was made anew: ") for text in done)
    assert [] == jitslab.check_pool(path)
    if name == "1.sums":
        assert before == state(path)
        write(path, "1.records", 5, b"?")
        write(path, "2.records", 5, b"?")
        assert ["1.records", "2.records"] == [broken.file for broken in jitslab.check_pool(path)]


def test_missing_generations_are_not_made_up(path):
    """Nothing replaces them."""
    os.unlink(path / "1.words")
    done = jitslab.repair_pool(path)

    assert any("the generations of cache 'nodes' are lost" in text for text in done)
    assert 2 in laws(path)


def test_generations_behind_the_slabs_are_zeroed(path):
    """All of them."""
    write(path, "1.words", WORDS_OFFSET + 4 * 90_000, struct.pack("<5I", *[5] * 5))
    done = jitslab.repair_pool(path)

    assert "1.words: 5 generations behind the slabs that were made are 0 now" in done
    assert [] == jitslab.check_pool(path)


def test_a_pool_in_use_is_not_repaired(path):
    """By a writer or a reader."""
    with jitslab.open_pool(path, "r+"), pytest.raises(jitslab.PoolBusyError, match="is open to write"):
        jitslab.repair_pool(path)
    with jitslab.open_pool(path, "r"), pytest.raises(jitslab.PoolBusyError, match="is being read"):
        jitslab.repair_pool(path)


def test_a_second_repair_finds_nothing(path):
    """Whatever was broken."""
    write(path, "1.records", 7 * BLOCK + 8, b"????????")
    write(path, "1.words", 0, b"x")
    write(path, "journal", frames_of(path)[1][0] + BLOCK, b"????????")
    write(path, "2.words", WORDS_OFFSET + 4 * 20_000, b"????")

    assert len(jitslab.repair_pool(path)) >= 4
    assert [] == jitslab.repair_pool(path)
    assert [] == jitslab.check_pool(path)


def test_a_damaged_head_of_a_later_life_is_found_and_made_again(path):
    """The head before it is whole, but the first commit names another."""
    with jitslab.open_pool(path, "r+") as pool:
        pool.checkpoint()
        pool.root["n"] = 76
        pool.commit()
        pool.checkpoint()
        pool.root["n"] = 77
    before = state(path)
    heads = (path / "journal").read_bytes()[:1024]
    salts = [int.from_bytes(heads[at + 24 : at + 32], "little") for at in (0, 512)]
    newest = 512 * salts.index(max(salts))
    write(path, "journal", newest, bytes(64))

    (found,) = jitslab.check_pool(path)
    assert (5, "journal", range(1, 2)) == (found.law, found.file, found.pages)
    assert "commit 6 is damaged" in str(found)
    with pytest.raises(jitslab.CorruptPoolError, match="commit 6 is damaged"):
        jitslab.open_pool(path, "r+")
    assert "the journal's head was made again, from the first commit, which has its hash" in jitslab.repair_pool(path)
    assert [] == jitslab.check_pool(path)
    assert before == state(path)

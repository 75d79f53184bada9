"""Reading what perf prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from jitslab import TraceError
from jitslab.cli import main
from jitslab.replay import recorder, trace

SAMPLE = """\
[000] kmem:kmem_cache_free: call_site=put+0x10 ptr=0xffff888100000900 name=before
[000] kmem:kmem_cache_alloc: call_site=get+0x1 ptr=0xffff888100000100 name=tea cup bytes_req=184 bytes_alloc=192 gfp_flags=A|B node=-1 accounted=true
[001] kmem:kmem_cache_alloc: call_site=get+0x2 ptr=0xffff888100000200 name=dish bytes_req=24 bytes_alloc=24 gfp_flags=A node=-1 accounted=false
[300] kmem:kmem_cache_free: call_site=put+0x10 ptr=0xffff888100000100 name=tea cup
[001] PERF_RECORD_LOST lost 17
something else that perf says
[000] kmem:kmem_cache_alloc: call_site=get+0x2 ptr=0xffff888100000200 name=tea cup bytes_req=184 bytes_alloc=192 gfp_flags=A node=-1 accounted=false
[000] kmem:kmem_cache_alloc: call_site=get+0x2 ptr=0x0 name=dish bytes_req=24 bytes_alloc=24 gfp_flags=A node=-1 accounted=false
[001] kmem:kmem_cache_free: call_site=put+0x10 ptr=0xffff888100000200 name=tea cup
"""  # noqa: E501  # as perf prints it


def test_lines_of_perf_become_events() -> None:
    """Frees of unknown addresses are left out; an address handed out twice was freed between; losses are counted."""
    made, lost = recorder.parse(SAMPLE.splitlines(keepends=True))

    trace.check_caches(made.caches)
    trace.check_events(made)
    assert lost == 17
    assert [(str(name), int(size)) for name, size in made.caches] == [("tea cup", 184), ("dish", 24)]
    assert made.events.tolist() == [
        (0, 0, 0, 184, 0),
        (0, 1, 1, 24, 1),
        (1, 300 & 255, 0, 0, 0),
        (1, 0, 1, 0, 1),
        (0, 0, 0, 184, 2),
        (1, 1, 0, 0, 2),
    ]


@pytest.mark.parametrize(
    "lines",
    [[], ["[000] kmem:kmem_cache_alloc: call_site=get+0x1 ptr=0xffff888100000100 bytes_req=184 bytes_alloc=192 gfp_flags=A"]],
    ids=["nothing", "an old kernel's lines"],
)
def test_lines_without_names_are_refused(lines: list[str]) -> None:
    """Kernels before 6.1 do not write the cache's name."""
    with pytest.raises(TraceError) as caught:
        recorder.parse(lines)

    assert str(caught.value) == "no event with the name of a cache was recorded; Linux 6.1 and later write it"


def test_missing_perf_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without perf nothing is run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TraceError) as caught:
        recorder.record(["true"], tmp_path)

    assert str(caught.value) == "there is no perf here; it comes with the package linux-perf or linux-tools"


def test_refusal_of_perf_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The line of its message that tells the reason is kept; the command is not run."""
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\necho 'event syntax error' >&2\necho 'Error:\tNo permissions to read it' >&2\nexit 129\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(TraceError) as caught:
        recorder.record(["touch", str(tmp_path / "touched")], tmp_path)

    assert str(caught.value) == "perf cannot record the kernel's slab caches: No permissions to read it"
    assert not (tmp_path / "touched").exists()


def test_missing_command_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that is not there is told apart from what perf says."""
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TraceError) as caught:
        recorder.record(["no-such-command"], tmp_path)

    assert str(caught.value) == "there is no command 'no-such-command'"


def test_missing_directory_is_said_before_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A recording that could not be kept is not made."""
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    status = main(["record", str(tmp_path / "no" / "out.npz"), "--", "true"])

    assert status == 2
    assert capsys.readouterr().err == f"jitslab record: there is no directory {str(tmp_path / 'no')!r}\n"


def test_recording_is_a_trace_that_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From the command line to the file, with a perf that prints the sample; its data is gone afterwards."""
    (tmp_path / "sample").write_text(SAMPLE)
    perf = tmp_path / "perf"
    perf.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = script ]; then exec cat {tmp_path}/sample; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'touch "$2"; shift 3; "$@"\n'
    )
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    out = tmp_path / "out.npz"
    status = main(["record", str(out), "--", "sh", "-c", f"echo ran > {tmp_path}/ran; exit 3"])

    assert status == 0
    assert capsys.readouterr().err == f"{out}: 6 events of 2 caches, 17 lost\n"
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert len(trace.load(out).events) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "perf", "ran", "sample"]

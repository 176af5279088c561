"""L1's one stream comes apart again: output, files and status, between the emulator's own lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labkit.bochs import frames


def frame(kind: bytes, payload: bytes) -> bytes:
    return b"\x1e" + kind + b"%04x" % len(payload) + payload


STREAM = (
    b"emulator starts\n"
    + frame(frames.STDOUT, b"one\x1e\n")
    + frame(frames.STDERR, b"")
    + b"a line of its own\n"
    + frame(frames.FILES, bytes(range(256)))
    + frame(frames.STATUS, b"7\n")
)
EXPECTED = [
    (frames.STDOUT, b"one\x1e\n"),
    (frames.STDERR, b""),
    (frames.FILES, bytes(range(256))),
    (frames.STATUS, b"7\n"),
]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_frames_come_out_however_the_stream_is_cut(step: int) -> None:
    stream = frames.Demultiplexer()
    found = []
    for start in range(0, len(STREAM), step):
        found += list(stream.feed(STREAM[start : start + step]))
    assert found == EXPECTED
    assert bytes(stream.outside) == b"emulator starts\na line of its own\n"


@pytest.mark.parametrize("noise", [b"\x1e", b"\x1eq0001", b"\x1eo00zz", b"\x1e\x1e\x1e"])
def test_a_mark_that_opens_no_frame_is_left_out(noise: bytes) -> None:
    stream = frames.Demultiplexer()
    found = list(stream.feed(noise + b"------" + frame(frames.STDOUT, b"x")))
    assert found == [(frames.STDOUT, b"x")]


def test_half_a_frame_is_no_frame() -> None:
    assert list(frames.Demultiplexer().feed(frame(frames.STATUS, b"0\n")[:-1])) == []


@pytest.mark.parametrize(
    ("payload", "status"),
    [(b"0\n", 0), (b"255\n", 255), (b"256\n", None), (b"-1", None), (b"", None), (b"x", None)],
)
def test_a_status_is_a_number_of_one_byte(payload: bytes, status: int | None) -> None:
    assert frames.status_of(payload) == status


def test_the_writer_agrees_on_the_kinds() -> None:
    source = Path(frames.__file__).with_name("relay.c").read_text()
    assert '"oe"[i]' in source
    init = Path(frames.__file__).with_name("init.sh").read_text()
    sent = [line.split()[-1] for line in init.splitlines() if "relay send" in line]
    assert sent == [frames.FILES.decode(), frames.STATUS.decode()]
    assert subprocess.run(["sh", "-n", "-c", init], check=False).returncode == 0

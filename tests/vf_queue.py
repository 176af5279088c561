"""A virtual function of the lab's network card, driven by its registers (82576 data sheet)."""

from __future__ import annotations

import struct
import time

from conftest import limit
from vmlet import vfio

#: The mailbox to the card's driver, and what is written into it (8.14).
_CONTROL, _MAILBOX = 0xC40, 0x800
_TAKE, _REQUEST, _TOLD = 1 << 2, 1 << 0, 1 << 4
#: The first transmit queue (8.12).
_RING_LOW, _RING_HIGH, _RING_BYTES, _HEAD, _TAIL = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
_QUEUE, _HEAD_TO_LOW, _HEAD_TO_HIGH = 0x3828, 0x3838, 0x383C
_ON, _WRITE_HEAD = 1 << 25, 1
#: A data descriptor that is a whole frame, whose end is to be told (7.2.2.3).
_DESCRIPTOR = struct.Struct("<QII")
_DATA = 3 << 20 | 1 << 24 | 1 << 25 | 1 << 27 | 1 << 29
_FRAME = b"\xff" * 6 + bytes.fromhex("020000000901 88b5") + bytes(46)
_ENTRIES = 8


def asked_for_mac(device: vfio.Device) -> str:
    """What the card's driver answers the reset message of a virtual function's driver (7.8.2.9.1):
    the MAC it shall use. From then on the card lets it send."""
    registers = device.bars[0]
    deadline = time.monotonic() + limit(5)
    registers.write(_CONTROL, _TAKE)
    while not registers.read(_CONTROL) & _TAKE:
        assert time.monotonic() < deadline, "the mailbox cannot be had"
        registers.write(_CONTROL, _TAKE)
    registers.write(_MAILBOX, 1)
    registers.write(_CONTROL, _REQUEST)
    while not registers.read(_CONTROL) & _TOLD:
        assert time.monotonic() < deadline, "the card's driver does not answer"
        time.sleep(0.01)
    answer = [registers.read(_MAILBOX + 4 * word) for word in range(3)]
    assert answer[0] == 0x8000_0001
    return struct.pack("<II", *answer[1:])[:6].hex(":")


class Sender:
    """The first transmit queue, in memory of this process at `iova`."""

    def __init__(self, device: vfio.Device, iova: int) -> None:
        self.registers = device.bars[0]
        self.memory = device.dma(8192, iova=iova)
        self.sent = 0
        self.memory.view()[4096 : 4096 + len(_FRAME)] = _FRAME
        entry = _DESCRIPTOR.pack(iova + 4096, _DATA | len(_FRAME), len(_FRAME) << 14)
        self.memory.view()[: 16 * _ENTRIES] = entry * _ENTRIES
        self._write(_RING_LOW, iova)
        self._write(_RING_HIGH, 0)
        self._write(_RING_BYTES, 16 * _ENTRIES)
        self._write(_HEAD, 0)
        self._write(_TAIL, 0)
        self._write(_QUEUE, _ON)

    def _write(self, register: int, value: int) -> None:
        self.registers.write(register, value)

    def send(self, head_to: int) -> None:
        """Sends a frame; how far the queue is the function writes to memory at `head_to`."""
        self._write(_HEAD_TO_LOW, head_to | _WRITE_HEAD)
        self._write(_HEAD_TO_HIGH, 0)
        self.sent += 1
        self._write(_TAIL, self.sent)
        deadline = time.monotonic() + limit(5)
        while self.registers.read(_HEAD) != self.sent:
            assert time.monotonic() < deadline, "the function does not send"
            time.sleep(0.01)

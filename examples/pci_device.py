"""A PCI device in Python, on a Linux guest: it reads text by DMA, and writes it back in capitals.

Run it with the path of a kernel (`vmlet kernel list`) and that of an initramfs or its directory.
"""

from __future__ import annotations

import sys
from typing import ClassVar

import vmlet

SOURCE, TARGET, LENGTH, START, STATUS = range(0, 20, 4)


class Capitals(vmlet.PciDevice):
    """Registers in BAR 0: three addresses and lengths, START, and STATUS with the interrupt."""

    vendor_id, device_id, class_code = 0x1234, 0xCA95, 0x120000
    bars: ClassVar = {0: vmlet.Bar(4096)}
    interrupt_line = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """All registers are zero."""
        self.registers = dict.fromkeys((SOURCE, TARGET, LENGTH, STATUS), 0)

    def read(self, bar: int, offset: int, size: int) -> int:
        """A register."""
        return self.registers.get(offset, 0) & (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """A register, or the order to begin; a write to STATUS ends the interrupt."""
        if offset == START:
            text = self.dma.read(self.registers[SOURCE], self.registers[LENGTH])
            self.dma.write(self.registers[TARGET], text.upper())
            self.registers[STATUS] = 1
        elif offset in self.registers:
            self.registers[offset] = 0 if offset == STATUS else value
        self.irq.set(self.registers[STATUS] == 1)


if __name__ == "__main__":
    with vmlet.VM(kernel=sys.argv[1], initramfs=sys.argv[2], devices=[Capitals()]) as vm:
        vm.start()
        for line in vm.console:
            print(line)

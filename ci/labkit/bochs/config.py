"""The emulator's configuration file and where everything lies in L1's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .kernel import PARAMETERS_ADDRESS

MIB = 1 << 20
INITRD_ADDRESS = 128 * MIB
ROOT_ADDRESS = 256 * MIB
# The chipset has all RAM below its PCI hole.
MEMORY_MAX = 2900  # MiB
# Guest time is instructions divided by this: low, so that L1's idle loops and tick cost little.
INSTRUCTIONS_PER_SECOND = 20_000_000

# What of L1's memory the emulator has in its own; the rest, if it is touched, in a file.
_HOST_MEMORY_MAX = 2048  # MiB

BOOT_DISK_SIZE = 16 * 63 * 512
_BOOT_DISK_SHAPE = "mode=flat, cylinders=1, heads=16, spt=63"
_PLUGINS = (
    *("unmapped=1", "biosdev=1", "speaker=0", "extfpuirq=0", "parallel=0", "gameport=0"),
    "iodebug=0",
)
_BIOS = "/usr/share/bochs/BIOS-bochs-latest"
_VGA_BIOS = "/usr/share/vgabios/vgabios.bin"


@dataclass(frozen=True)
class Layout:
    """The files of one run and the shape of L1."""

    folder: Path  # of the run; holds the files that are written here
    model: str
    cpus: int
    memory: int  # MiB, without the root image
    kernel: Path
    kernel_address: int
    initrd: Path
    root: Path
    root_size: int  # bytes, whole MiB

    @property
    def total_memory(self) -> int:
        """MiB of RAM that the emulated machine has."""
        return self.memory + self.root_size // MIB

    def kernel_arguments(self) -> str:
        """What tells L1's kernel that the root image is a memory device."""
        return f"memmap={self.root_size // MIB}M!{ROOT_ADDRESS // MIB}M"

    @property
    def parameters(self) -> Path:
        """boot_params and the command line."""
        return self.folder / "parameters"

    @property
    def boot_disk(self) -> Path:
        """The disk with the boot sector."""
        return self.folder / "boot.img"

    @property
    def serial(self) -> Path:
        """What L1's kernel prints."""
        return self.folder / "serial"

    @property
    def log(self) -> Path:
        """The emulator's log."""
        return self.folder / "log"


def render(layout: Layout, *, report_errors: bool = False) -> str:
    """The text of the configuration file.

    `report_errors` has the log name every VM exit that the emulator sees as an error,
    EPT violations with their addresses among them.
    """
    images = (
        (layout.parameters, PARAMETERS_ADDRESS),
        (layout.kernel, layout.kernel_address),
        (layout.initrd, INITRD_ADDRESS),
        (layout.root, ROOT_ADDRESS),
    )
    memory = layout.total_memory
    lines = [
        "config_interface: textconfig",
        "display_library: term",
        f"cpu: {_cpu(layout)}",
        f"memory: guest={memory}, host={min(memory, _HOST_MEMORY_MAX)}",
        f"romimage: file={_BIOS}",
        f"vgaromimage: file={_VGA_BIOS}",
        *(
            f"optramimage{number}: file={path}, address={address:#x}"
            for number, (path, address) in enumerate(images, 1)
        ),
        "pci: enabled=1, chipset=i440fx",
        f"ata0-master: type=disk, path={layout.boot_disk}, {_BOOT_DISK_SHAPE}",
        "boot: disk",
        f"com1: enabled=1, mode=file, dev={layout.serial}",
        "clock: sync=none, time0=utc",
        f"log: {layout.log}",
        "panic: action=fatal",
        f"error: action={'report' if report_errors else 'ignore'}",
        "info: action=report",
        "debug: action=ignore",
        "port_e9_hack: enabled=1",
        # A host without sound: the emulator ends at once if it looks for a driver.
        "sound: driver=default, waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy",
        "speaker: enabled=0",
        "vga: extension=vbe, update_freq=1",
        f"plugin_ctrl: {', '.join(_PLUGINS)}",
    ]
    return "\n".join(lines) + "\n"


def _cpu(layout: Layout) -> str:
    settings = (
        f"model={layout.model}",
        f"count={layout.cpus}",
        f"ips={INSTRUCTIONS_PER_SECOND}",
        "reset_on_triple_fault=0",  # L1 ends with its panic, and the emulator with it
    )
    return ", ".join(settings)

"""Devices of a VM, for `vmlet.VM(devices=[...])`.

Some are plain data, made by the core (`Model`), others are written in Python (`Device`):
docs/python-devices.md says what those may do and what they cost.
"""

from vmlet._core import Batch, Chain, Irq, Queue
from vmlet.devices.balloon import Balloon
from vmlet.devices.console import VirtioConsole
from vmlet.devices.device import Device
from vmlet.devices.disk import Disk
from vmlet.devices.model import Model
from vmlet.devices.net import LinkEnd, Net, link
from vmlet.devices.pci import Bar, Capability, Dma, PciDevice, Vector
from vmlet.devices.registers import MmioDevice, PioDevice
from vmlet.devices.rng import Rng
from vmlet.devices.vfio import Vfio
from vmlet.devices.virtio import VirtioDevice
from vmlet.devices.vsock import Vsock

__all__ = [
    "Balloon",
    "Bar",
    "Batch",
    "Capability",
    "Chain",
    "Device",
    "Disk",
    "Dma",
    "Irq",
    "LinkEnd",
    "MmioDevice",
    "Model",
    "Net",
    "PciDevice",
    "PioDevice",
    "Queue",
    "Rng",
    "Vector",
    "Vfio",
    "VirtioConsole",
    "VirtioDevice",
    "Vsock",
    "link",
]

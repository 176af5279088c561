"""Devices written in Python: docs/python-devices.md says what they may do and what they cost."""

from vmlet._core import Batch, Irq
from vmlet.devices.device import Device
from vmlet.devices.registers import MmioDevice, PioDevice

__all__ = ["Batch", "Device", "Irq", "MmioDevice", "PioDevice"]

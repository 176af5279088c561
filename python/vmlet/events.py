"""What happens to a VM."""

from __future__ import annotations

from dataclasses import dataclass

#: Kinds after which no guest code runs any more.
FINAL = frozenset({"poweroff", "reset", "panic", "triple-fault", "halt", "stopped", "error"})


_REMEDIES = {
    "panic": "detail has the kernel's words, the console what came before them.",
    "triple-fault": "A fault met no handler. vm.vcpus[...].regs may show where; on AMD processors "
    "they are those of a reset, and stepping there is the way.",
    "halt": "The guest halted with interrupts off: vm.vcpus[...].regs shows where.",
    "error": "vmlet doctor says what this host's engine runs; vm.vcpus[...].regs where it ended.",
    "device-removal": "Detach it: vm.detach(port), or with pull=True without asking the guest.",
    "device-failure": "Detach it with pull=True and attach it again, which resets it.",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction that the engine does not carry out.

    >>> str(Instruction(0x1000, b"\\xcf", "iret, to virtual-8086 mode"))
    'cf at 0x1000 (iret, to virtual-8086 mode)'
    """

    #: Its address, without the base of CS.
    rip: int
    #: Its first bytes, and what follows it; none where the engine does not tell.
    bytes: bytes
    #: Its mnemonic and what of it is lacking, where the engine tells.
    name: str | None = None

    def __str__(self) -> str:
        text = f"{self.bytes.hex()} at {self.rip:#x}".lstrip()
        return f"{text} ({self.name})" if self.name else text


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a VM.

    >>> Event("poweroff", vcpu=0, source="acpi").is_final
    True
    """

    #: "started", "paused", "resumed", or how the run ended: "poweroff", "reset", "panic",
    #: "triple-fault", "halt", "stopped", "error"; "detached" when a device has left its slot;
    #: "device-removal" when the host wants a device of its own back, "device-failure" when that has
    #: reported an error that it does not recover from (``detail`` names it as `VM.devices` does).
    kind: str
    #: The vCPU it happened on, if on one.
    vcpu: int | None = None
    #: Who says so: a device ("acpi", "cf9", "pvpanic"), "console", "engine" or "user".
    source: str = ""
    #: More, for people.
    detail: str = ""
    #: The instruction that ended the run, where that is why (``kind`` is "error").
    instruction: Instruction | None = None

    @property
    def is_final(self) -> bool:
        """Whether the guest's run is over."""
        return self.kind in FINAL

    @property
    def remedy(self) -> str | None:
        """What to look at next, where the run ended badly, or what a device needs."""
        return _REMEDIES.get(self.kind)

    def __str__(self) -> str:
        text = f"{self.kind} ({self.source})" if self.source else self.kind
        return f"{text}: {self.detail}" if self.detail else text


def event_of(
    kind: str,
    vcpu: int | None,
    source: str,
    detail: str,
    instruction: tuple[int, bytes, str | None] | None,
) -> Event:
    """An event as the core gives it."""
    lacking = None if instruction is None else Instruction(*instruction)
    return Event(kind, vcpu, source, detail, lacking)

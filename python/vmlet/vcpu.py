"""A vCPU."""

from __future__ import annotations

from vmlet._core import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmlet.exits import Exits
    from vmlet.registers import Regs, Sregs


class Vcpu:
    """A virtual CPU.

    Registers can be read at any time; setting them and `step` need guest code to stand still.

    >>> import vmlet
    >>> vm = vmlet.VM(kernel="vmlinuz")  # doctest: +SKIP
    >>> hex(vm.vcpus[0].regs.rip)  # doctest: +SKIP
    '0x1000000'
    """

    def __init__(self, machine: Machine, index: int) -> None:
        self._machine = machine
        #: The vCPU's number, which is its APIC id.
        self.id = index

    def __repr__(self) -> str:
        return f"<vmlet.Vcpu {self.id}>"

    @property
    def regs(self) -> Regs:
        """The general registers. Change them with `dataclasses.replace`."""
        from vmlet.registers import Regs

        return Regs(**self._machine.regs(self.id))

    @regs.setter
    def regs(self, regs: Regs) -> None:
        from dataclasses import asdict

        self._machine.set_regs(self.id, asdict(regs))

    @property
    def sregs(self) -> Sregs:
        """Segments, control registers and descriptor tables."""
        from vmlet.registers import sregs_of

        return sregs_of(self._machine.sregs(self.id))

    @sregs.setter
    def sregs(self, sregs: Sregs) -> None:
        from vmlet.registers import values_of

        self._machine.set_sregs(self.id, values_of(sregs))

    def stats(self) -> dict[str, int | tuple[int, ...]]:
        """The numbers the engine keeps about the vCPU, by KVM's names: exits, halts, and more.

        A histogram is a tuple of its buckets.
        """
        return self._machine.vcpu_stats(self.id)

    def exits(self) -> Exits:
        """How often the guest reached a device from this vCPU; `VM.exits` has the sum."""
        from vmlet.exits import exits_of

        return exits_of([self._machine.exits(self.id)])

    def step(self) -> None:
        """Carries out one instruction.

        A vCPU that halts waits for an interrupt; ``vm.resume()``, ``vm.stop()`` and ``vm.close()``
        from another thread and Ctrl-C end that wait.
        """
        self._machine.step(self.id)

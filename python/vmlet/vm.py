"""A virtual machine as a Python object."""

from __future__ import annotations

import os

from vmlet import endings, logs
from vmlet._core import Machine, open_kernel
from vmlet.console import Console, Terminal
from vmlet.engines import default_cmdline, resolve
from vmlet.errors import (
    ConfigError,
    HostError,
    KernelError,
    TimeoutError,
)
from vmlet.fittings import Fittings, plug_later, unplug
from vmlet.memory import Memory
from vmlet.settings import backing_of, kernel_cache, rate, ring_entries
from vmlet.sizes import parse_size
from vmlet.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from types import TracebackType
    from typing import Any, Literal, NoReturn, Self

    from typing_extensions import TypeIs

    from vmlet._core import KernelImage
    from vmlet.balloon import Ballooning
    from vmlet.devices import Device, Model
    from vmlet.events import Event
    from vmlet.exits import Exits
    from vmlet.inspection import Walk
    from vmlet.plugged import PluggedDevice
    from vmlet.regions import Unclaimed
    from vmlet.sockets import Sockets

    _Image = str | PathLike[str] | bytes

_MOST = (1 << 63) - 1


class VM:
    """A virtual machine.

    It is made ready to run; `start` runs it. Used as a context manager it is closed at the end;
    one that is collected open closes itself with a `ResourceWarning`. All methods can be called
    from any thread. It cannot be pickled or copied, a forked child cannot use it
    (`ForkedProcessError`), and the module loads in the main interpreter only.

    Ctrl-C interrupts every call that waits (`wait`, `run`, `events`, the console's); the guest
    runs on until the VM is stopped or closed.

    Args:
        kernel: path or bytes of a bzImage (vmlinuz), an ELF vmlinux or a PVH ELF. What a bzImage
            packs is unpacked once and kept for the next VMs, in the folder ``vmlet/kernels`` of the
            user's cache (XDG_CACHE_HOME, else ~/.cache), or in that which the environment variable
            VMLET_KERNEL_CACHE names; nowhere where that is empty. A file is known again by device,
            inode, size and times of change, and not read then.
        initramfs: path or bytes of an image, or the path of a directory, which is packed.
        modules: PVH modules, path or bytes each.
        cmdline: the kernel's command line, given to it as it is; None for `default_cmdline` of
            the engine. `VM.cmdline` shows it.
        memory: bytes, or text like "256M".
        cpus: vCPUs.
        engine: "kvm", "soft" (the software CPU), or "auto": KVM where a small guest that was run
            on it executed supervisor code on the processor, else the software CPU, which a
            warning of the logger ``vmlet`` tells once. A KVM that interprets supervisor code
            runs some small guests, but no kernel: it has to be asked for by its name.
        clock: what guest time follows: "realtime", the host; or "icount", the guest's instructions,
            one nanosecond each, which makes every run the same (`run_for`, `record`, `replay`).
            Idle time is skipped then, and the guest's clock starts at 2026-01-01 00:00:00 UTC.
            Only the software CPU counts; "auto" takes it.
        cpu: the processor that the guest sees: "host", all that the engine offers; a level of the
            x86-64 psABI, "x86-64-v1", "x86-64-v2" or "x86-64-v3", which is the same on Intel's and
            AMD's processors, the first on the software CPU too; or "soft-v1", all that the software
            CPU has, which KVM can be too. What an engine lacks is named by an `UnsupportedError`,
            and so is a KVM that shows guests other features than their model's. What is hidden
            and what is not: docs/cpu-virtualization.md.
        tsc_khz: kilohertz of the guest's time-stamp counter; None for the engine's own: on KVM the
            processor's (``capabilities()["tsc_khz"]``), on the software CPU, which can have any,
            1,000,000. A KVM that cannot scale the counter refuses others.
        protocol: "auto", "linux64", "pvh" or "bzimage".
        ram: "anon", "memfd", or "hugetlb:2M" or "hugetlb:1G" for huge pages, which the VM takes
            from the host's pool when it is made.
        prefault: have the host give all memory when the VM is made, not at the first access.
        dirty_ring: entries of a ring for each vCPU in which KVM notes dirty pages, a power of two
            from 1024 on: then `Memory.dirty` costs what was written, not what memory there is.
            None for a log of all pages, which every engine has. Refused where there are no rings,
            or none that hold: the software CPU, KVM before Linux 5.11 and a KVM that interprets
            supervisor code.
        devices: disks and other devices that are there from the start, in this order, and devices
            written in Python, such as subclasses of `MmioDevice`.
        pci_ports: PCIe root ports, 30 at most, and at least one for each disk and the like: each
            has a slot for one device, which can come and go while the guest runs. Without any the
            VM has no PCI.
        name: shown in messages.
        console_limit: bytes of unread console output kept.
        debug_port: what the guest writes to port 0xe9, the debug port of other emulators, goes to
            the console too.

    >>> import vmlet
    >>> with vmlet.VM(kernel="vmlinuz", initramfs="root/") as vm:  # doctest: +SKIP
    ...     vm.start()
    ...     vm.console.expect("login:")
    """

    def __init__(
        self,
        *,
        kernel: _Image,
        initramfs: _Image | None = None,
        modules: Sequence[_Image] = (),
        cmdline: str | None = None,
        memory: int | str = "256M",
        cpus: int = 1,
        engine: Literal["auto", "kvm", "soft"] = "auto",
        cpu: Literal["host", "soft-v1", "x86-64-v1", "x86-64-v2", "x86-64-v3"] = "host",
        tsc_khz: int | None = None,
        clock: Literal["realtime", "icount"] = "realtime",
        protocol: Literal["auto", "linux64", "pvh", "bzimage"] = "auto",
        ram: Literal["anon", "memfd", "hugetlb:2M", "hugetlb:1G"] = "anon",
        prefault: bool = False,
        dirty_ring: int | None = None,
        pci_ports: int = 0,
        name: str | None = None,
        console_limit: int | str = "4M",
        debug_port: bool = False,
        devices: Sequence[Device | Model] = (),
    ) -> None:
        self.name = name if name is not None else "vm"
        if isinstance(cpus, bool) or not isinstance(cpus, int) or not 0 <= cpus < 1 << 32:
            raise ConfigError(f"cpus cannot be {cpus!r}", remedy="Give a number from 1 on.")
        size = parse_size(memory)
        if size > _MOST:
            raise ConfigError(f"memory cannot be {size} bytes", remedy="Give the VM less memory.")
        backing, huge_page = backing_of(ram)
        limit = parse_size(console_limit)
        texts = {
            "cmdline": "" if cmdline is None else cmdline,
            "engine": engine,
            "protocol": protocol,
            "clock": clock,
            "cpu": cpu,
        }
        for what, text in texts.items():
            if not isinstance(text, str):
                raise ConfigError(f"{what} cannot be {text!r}", remedy="Give text.")
        logs.follow()
        fittings = Fittings(devices)
        chosen = resolve(engine, clock)
        given = default_cmdline(chosen) if cmdline is None else cmdline
        kept = kernel_cache()
        whole = _read(kernel, "kernel") if clock == "icount" else None
        image = _open_kernel(kernel, kept) if whole is None else whole
        files = None if initramfs is None else _read_initramfs(initramfs)
        parts = [_read(module, "module") for module in modules]
        try:
            self._machine = Machine(
                name=self.name,
                kernel=image,
                kernel_cache=kept,
                initramfs=files,
                modules=parts,
                cmdline=given,
                memory=size,
                cpus=cpus,
                engine=chosen,
                protocol=protocol,
                ram=backing,
                huge_page=huge_page,
                prefault=prefault,
                console_limit=min(limit, _MOST),
                debug_port=debug_port,
                clock=clock,
                cpu=cpu,
                tsc_khz=rate(tsc_khz),
                dirty_ring=ring_entries(dirty_ring),
                pci_ports=_ports(pci_ports, len(fittings.plugged)),
                devices=fittings.specs,
                calls_python=fittings.calls_python,
            )
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(str(error)) from None
        #: What the VM is made of, for records; digests take time and are made when one begins.
        self._identity = None
        if whole is not None:
            from vmlet.records import Images, identity_of

            images = Images(kernel=whole, initramfs=files, modules=parts)
            settings = {"cmdline": given, "memory": size, "cpus": cpus}
            settings |= {"protocol": protocol, "debug port": debug_port}
            settings |= {f"device {number}": repr(device) for number, device in enumerate(devices)}
            self._identity = identity_of(images, settings)
        fittings.plug(self, self._machine)
        self._furnish(min(limit, _MOST))

    def _furnish(self, console_limit: int) -> None:
        """What stands around the core's object."""
        endings.alive.add(self._machine)
        self._pid = os.getpid()
        #: The kernel's command line.
        self.cmdline = self._machine.cmdline
        #: What the guest prints and reads.
        self.console = Console(self._machine, console_limit)
        self._terminal: Terminal | None = None
        self._console_limit = console_limit
        #: The guest's memory.
        self.memory = Memory(self._machine)
        #: The vCPUs.
        self.vcpus = tuple(Vcpu(self._machine, index) for index in range(self._machine.cpus))

    @property
    def terminal(self) -> Terminal:
        """What the guest prints and reads on /dev/hvc0; needs a `vmlet.VirtioConsole`."""
        if self._terminal is None:
            self._terminal = Terminal(self._machine, self._console_limit)
        return self._terminal

    @property
    def balloon(self) -> Ballooning:
        """The memory that the guest gives back; needs a `vmlet.Balloon`."""
        from vmlet.balloon import Ballooning

        return Ballooning(self._machine)

    @property
    def vsock(self) -> Sockets:
        """Streams between the guest and this process; needs a `vmlet.Vsock`."""
        from vmlet.sockets import Sockets

        return Sockets(self._machine)

    @property
    def devices(self) -> dict[int, PluggedDevice]:
        """The devices in PCIe root ports: port and name."""
        from vmlet.plugged import devices

        return devices(self._machine)

    def attach(self, device: Device | Model, *, port: int | None = None) -> int:
        """Puts a device into a root port, the first that is free or ``port``; says which.

        A guest that runs is told by native PCIe hot-plug. ``pci_ports`` says how many ports a VM
        has. Of devices written in Python, `PciDevice` and `VirtioDevice` can come later.

        >>> port = vm.attach(vmlet.Disk("data.img"))  # doctest: +SKIP
        >>> vm.detach(port)  # doctest: +SKIP
        """
        return plug_later(self, self._machine, device, port)

    def detach(self, port: int, *, timeout: float | None = 30, pull: bool = False) -> None:
        """Asks the guest for the device in ``port`` and waits until it has gone.

        Then it holds nothing of the host any more, and whatever it was may be used for something
        else. `TimeoutError` after ``timeout`` seconds (None: never): Linux waits for five before it
        lets go. With ``pull`` the device goes at once, as if it was torn out; a Linux guest that
        had its virtio driver on it does not find another device in that port.
        """
        unplug(self._machine, port, timeout, pull=pull)

    def _save(self) -> bytes:
        """The whole paused VM: processors, memory, board. The public snapshot comes later."""
        return self._machine.save()

    @classmethod
    def _restore(
        cls,
        saved: bytes,
        *,
        engine: Literal["auto", "kvm", "soft"] = "auto",
        name: str = "vm",
        console_limit: int | str = "4M",
        devices: Sequence[Device | Model] = (),
    ) -> Self:
        """The VM that `_save` made ``saved`` of, on any engine that has its CPU; it can start.

        ``devices`` are those it had, in their order.
        """
        vm = cls.__new__(cls)
        vm.name = name
        logs.follow()
        vm._identity = None
        limit = min(parse_size(console_limit), _MOST)
        fittings, chosen = Fittings(devices), resolve(engine, "realtime")
        vm._machine = Machine.restore(
            name, bytes(saved), chosen, limit, fittings.specs, fittings.calls_python
        )
        fittings.plug(vm, vm._machine, again=True)
        vm._furnish(limit)
        return vm

    @property
    def engine(self) -> str:
        """The name of the engine that runs it: "kvm" or "soft"."""
        return self._machine.engine

    @property
    def state(self) -> str:
        """ "created", "running", "paused", "ended" or "closed"."""
        return self._machine.state

    def start(self) -> None:
        """Runs guest code; returns at once."""
        self._machine.start()

    def pause(self) -> None:
        """Stops guest code between two instructions, on every vCPU."""
        self._machine.pause()

    def resume(self) -> None:
        """Runs guest code again after `pause`."""
        self._machine.resume()

    def stop(self) -> None:
        """Ends the run: the guest gets no chance to object. The state can still be looked at."""
        self._machine.stop()

    def wait(self, timeout: float | None = None) -> Event:
        """The event that ended the run; `TimeoutError` after ``timeout`` seconds (None: never)."""
        found = self._machine.wait(timeout)
        if found is None:
            raise self._still_runs(timeout)
        return _event(found)

    def _still_runs(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"{self.name} is still {self.state} after {timeout} s",
            remedy="Give it more time, or stop it.",
        )

    def run(self, timeout: float | None = None) -> Event:
        """`start`, then `wait`."""
        self.start()
        return self.wait(timeout)

    @property
    def instructions(self) -> int:
        """Instructions that the vCPUs have retired, all together; faults count one.

        Exact while guest code stands still. `UnsupportedError` without ``clock="icount"``.
        """
        return self._machine.instructions()

    def run_for(self, *, instructions: int, timeout: float | None = None) -> Event | None:
        """Starts or resumes the guest, and pauses it after exactly that many ``instructions``.

        None when it stands there, "paused"; the event when its run ended before. Where it stopped
        makes no difference to the guest. `TimeoutError` after ``timeout`` seconds (None: never),
        with the guest still running: one that waits for input retires nothing.

        >>> with vmlet.VM(kernel="vmlinuz", clock="icount") as vm:  # doctest: +SKIP
        ...     vm.run_for(instructions=1_000_000)
        ...     vm.instructions, vm.state
        (1000000, 'paused')
        """
        self._begin_run_for(instructions)
        if not self._machine.end_run_for(timeout):
            raise self._still_counts(timeout)
        return self._early_end()

    def _begin_run_for(self, instructions: int) -> None:
        if isinstance(instructions, bool) or not isinstance(instructions, int) or instructions < 0:
            raise ConfigError(
                f"instructions cannot be {instructions!r}", remedy="Give a number from 0 on."
            )
        self._machine.begin_run_for(min(instructions, _MOST))

    def _still_counts(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"{self.name} has not retired its instructions after {timeout} s",
            remedy="Give it more time or input; vm.pause() makes it stand still.",
        )

    def _early_end(self) -> Event | None:
        found = self._machine.wait(0) if self.state == "ended" else None
        return None if found is None else _event(found)

    def record(self, path: str | PathLike[str]) -> None:
        """Writes every input of the run to come to a file; before `start`, with ``clock="icount"``.

        The file is whole when the run has ended or the VM is closed. It holds what is typed and
        interrupts from outside, each with the instruction at which it entered, and what the VM was
        made of; not the images. Meanwhile memory and registers cannot be written (`StateError`).
        """
        self._machine.record(path, self._identity_or_none())

    @classmethod
    def replay(cls, path: str | PathLike[str], **settings: Any) -> Self:
        """A VM whose run takes its inputs from a file of `record`, and ends with it.

        ``settings`` are those of the recorded VM. A record of another kernel, initramfs, command
        line, size or version of vmlet is refused with its name (`ConfigError`), as is a damaged
        file, with the offset. The run goes as the recorded one went and ends at the same
        instruction, in the same state (`state_hash`): as that did, or with "stopped" where that was
        stopped or closed. A run that goes otherwise ends with "error".

        >>> vm = vmlet.VM(kernel="vmlinuz", clock="icount")  # doctest: +SKIP
        >>> vm.record("boot.rec"); vm.run_for(instructions=10**8); vm.close()  # doctest: +SKIP
        >>> again = vmlet.VM.replay("boot.rec", kernel="vmlinuz")  # doctest: +SKIP
        >>> again.run(timeout=60)  # doctest: +SKIP
        Event(kind='stopped', vcpu=None, source='record', detail='')
        """
        vm = cls(**{"clock": "icount", **settings})
        try:
            vm._machine.replay(path, vm._identity_or_none())
        except BaseException:
            vm.close()
            raise
        return vm

    def _identity_or_none(self) -> list[tuple[str, str]]:
        return [] if self._identity is None else self._identity()

    def state_hash(self) -> str:
        """A SHA-256 over memory, vCPU registers and, where they are counted, instructions.

        Of a VM that stands still: two counted runs that are the same have the same one.
        """
        import hashlib

        digest = hashlib.sha256()
        for region in self.memory.regions():
            digest.update(repr(region).encode())
            digest.update(memoryview(self.memory.view(region.gpa, region.length)))
        for vcpu in self.vcpus:
            digest.update(repr((vcpu.regs, vcpu.sregs)).encode())
        if self._identity is not None:
            digest.update(str(self.instructions).encode())
        return digest.hexdigest()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Events as they come, until the run has ended.

        ``timeout`` limits the wait for each; `TimeoutError` after that.
        """
        while True:
            found = self._machine.next_event(timeout)
            if found is not None:
                yield _event(found)
            elif self.state in ("ended", "closed"):
                return
            else:
                raise self._silent(timeout)

    def _silent(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"nothing happened to {self.name} within {timeout} s",
            remedy="Give it more time, or stop it.",
        )

    def translate(self, address: int, vcpu: int = 0) -> int:
        """The guest-physical address behind a linear address of ``vcpu``.

        `GuestError` when the guest's page tables do not map it.
        """
        return self._machine.translate(address, vcpu)

    def walk(self, address: int, vcpu: int = 0) -> Walk:
        """Explains how ``address``, a linear address of ``vcpu``, is translated.

        Each step of the guest's own page tables with what it allows, the page or the cause of the
        fault, and for every guest-physical address on the way the memory slot behind it. KVM's own
        second-stage tables cannot be read; what is shown of them is what the slots guarantee.

        >>> print(vm.walk(0xffffffff81000000))  # doctest: +SKIP
        linear 0xffffffff81000000, 4 levels from CR3 0x2a0a000
               entry at   entry      allows      leads to       second stage
        PML4E  0x2a0aff8  0x2a0d067  rwx user    table          slot 0 -> 0x7f3742a0aff8, ...
        """
        from vmlet.inspection import walk_of

        return walk_of(self._machine.walk(address, vcpu))

    def stats(self) -> dict[str, int | tuple[int, ...]]:
        """The numbers the engine keeps about the VM, by KVM's names; empty if it keeps none.

        ``pages_4k``, ``pages_2m`` and ``pages_1g`` count the second stage's pages. A histogram is
        a tuple of its buckets. `Vcpu.stats` has those of a vCPU.
        """
        return self._machine.stats()

    def exits(self) -> Exits:
        """How often the guest reached a device, by kind, port and page, over all vCPUs.

        It is counted all the time; `Vcpu.exits` has the exits of one vCPU.

        >>> print(vm.exits())  # doctest: +SKIP
             count  kind           place
               812  port writes    0x3f8
        """
        from vmlet.exits import exits_of

        return exits_of(self._machine.exits(vcpu.id) for vcpu in self.vcpus)

    def unclaimed_ports(self) -> Unclaimed:
        """The guest's accesses to ports that have no device: they read as ones and write nothing.

        `Memory.unclaimed` has those to memory addresses.
        """
        from vmlet.regions import unclaimed_of

        return unclaimed_of(self._machine.unclaimed()[0])

    def close(self, *, wait: bool = False, timeout: float | None = None) -> None:
        """Ends everything: guest code, threads, descriptors. Closing twice does nothing.

        The guest runs no more when this returns. What the kernel has to free it frees after that,
        unless you ``wait`` for it.

        A callback of a device is waited for; `TimeoutError` after ``timeout`` seconds (None:
        never), and the VM can be closed once the callback has returned. Ctrl-C interrupts that
        wait. What is posted and not delivered is lost.
        """
        self._machine.close(wait, timeout)
        endings.alive.discard(self._machine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A forked child leaves the block too, and has nothing to close.
        if self._pid == os.getpid():
            self.close()

    def __del__(self) -> None:
        machine: Machine | None = getattr(self, "_machine", None)
        if machine is None or getattr(self, "_pid", None) != os.getpid():
            return
        # Who holds it no more lets it go, even where it cannot be closed: in its own callback.
        endings.alive.discard(machine)
        if machine.state != "closed":
            import warnings  # here: a VM boots without it

            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            machine.close(False, endings.CALLBACK_AT_END)

    def __repr__(self) -> str:
        if not hasattr(self, "vcpus"):
            return "<vmlet.VM that was not made>"
        if self._pid != os.getpid():
            return f"<vmlet.VM {self.name} of another process>"
        return f"<vmlet.VM {self.name} {self.engine} {self.state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VM cannot be pickled: it lives in one process")


def _event(found: Any) -> Event:
    from vmlet.events import event_of

    return event_of(*found)


def _ports(count: int, devices: int) -> int:
    if isinstance(count, int) and 0 <= count <= 30:
        return max(count, devices)
    raise ConfigError(f"pci_ports cannot be {count!r}", remedy="Give 0 to 30 root ports.")


def _is_bytes(image: _Image) -> TypeIs[bytes]:
    return isinstance(image, (bytes, bytearray, memoryview))


def _read(image: _Image, what: str) -> bytes:
    if _is_bytes(image):
        return bytes(image)
    try:
        with open(image, "rb") as file:  # noqa: PTH123 - pathlib takes long to import
            return file.read()
    except OSError as error:
        message = f"{what} {os.fspath(image)} cannot be read: {error.strerror}"
        remedy = "Give the path of a readable file."
        if isinstance(error, (FileNotFoundError, IsADirectoryError)):
            raise KernelError(message, remedy=remedy) from error
        raise HostError(message, errno=error.errno, remedy=remedy) from error


def _open_kernel(image: _Image, kept: str | None) -> bytes | KernelImage:
    opened = None if _is_bytes(image) else open_kernel(os.fspath(image), kept)
    return opened or _read(image, "kernel")


def _read_initramfs(image: _Image) -> bytes:
    if not _is_bytes(image) and os.path.isdir(image):  # noqa: PTH112
        from vmlet.initramfs import build_initramfs

        return build_initramfs(image)
    return _read(image, "initramfs")

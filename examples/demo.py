"""Boots a Linux kernel from Python, talks to its shell, and looks into it from outside.

Usage: demo.py KERNEL [BUSYBOX]

KERNEL is a vmlinuz or vmlinux file. BUSYBOX is a statically linked busybox, the guest's only
program.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import vmlet

# A slow host, an emulated one for example, says how much slower it is.
PATIENCE = float(os.environ.get("VMLET_TIME_FACTOR", "1"))
PROMPT = "vmlet# "
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox stty -echo
export PATH=/bin PS1='{PROMPT}'
exec /bin/busybox sh -i
"""
COMMANDS = ("uname", "cat", "free", "poweroff", "reboot")


def initramfs(busybox: Path) -> bytes:
    """A guest's root of one program and one script."""
    return vmlet.build_initramfs(
        files={"init": INIT.encode(), "bin/busybox": busybox.read_bytes()},
        links={f"bin/{name}": "busybox" for name in COMMANDS},
    )


def ask(vm: vmlet.VM, command: str) -> str:
    """Type a command into the guest's shell; return what it prints."""
    vm.console.write(f"{command}\n")
    answer = re.compile(rb"(?s)(.*?)" + PROMPT.encode())
    said: bytes = vm.console.expect(answer, timeout=30 * PATIENCE)[1]
    return said.decode(errors="replace").replace("\r", "").strip()


def say(text: str) -> None:
    """A line on stdout, at once."""
    print(text, flush=True)


def boot(vm: vmlet.VM) -> None:
    """Start the guest and wait for its shell."""
    start = time.monotonic()
    say(f"-- {vm!r}: starting; this takes seconds, on an emulated host up to a minute")
    vm.start()
    vm.console.expect(PROMPT, timeout=60 * PATIENCE)
    say(f"-- the guest's shell answers after {time.monotonic() - start:.1f} s")


def look(vm: vmlet.VM) -> None:
    """Show registers and memory of the paused guest."""
    vm.pause()
    regs, sregs = vm.vcpus[0].regs, vm.vcpus[0].sregs
    say(f"-- paused: rip={regs.rip:#x} rsp={regs.rsp:#x} cr3={sregs.cr3:#x} efer={sregs.efer:#x}")
    where = vm.translate(regs.rip)
    say(f"   rip {regs.rip:#x} is at guest-physical {where:#x}")
    say(f"   the instruction there: {vm.memory[where : where + 8].hex(' ')}")
    view = memoryview(vm.memory.view(0, len(vm.memory) // 4))
    at = bytes(view).find(b"Linux version ")
    if at >= 0:
        found = bytes(view[at : at + 60]).split(b"\0")[0]
        say(f"   guest-physical {at:#x} reads: {found.decode(errors='replace')}...")
    vm.resume()


def main(kernel: Path, busybox: Path) -> int:
    """Run the demo."""
    with vmlet.VM(kernel=kernel, initramfs=initramfs(busybox), memory="256M", name="demo") as vm:
        boot(vm)
        for command in ("uname -a", "cat /proc/cpuinfo"):
            say(f"guest$ {command}\n{ask(vm, command)}")
        look(vm)
        vm.console.write("poweroff -f\n")
        event = vm.wait(timeout=30 * PATIENCE)
        say(f"-- the guest ended: {event.kind}, said by {event.source}")
        return 0 if event.kind == "poweroff" else 1


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2] if sys.argv[2:] else "/bin/busybox")))

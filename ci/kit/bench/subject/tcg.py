"""The reference of the benchmarks of the software CPU: QEMU's translator, TCG.

`tcg.py INITRD CMDLINE KERNEL... -- FLAGS...` serves "boot" and "run" as `linux.py` does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

_LIMIT = 600.0


class Guest:
    """A guest with its initial RAM file system."""

    def __init__(self, kernel: str, initrd: str, cmdline: str, flags: list[str]) -> None:
        """Boot it, as far as init's first output."""
        program = ["qemu-system-x86_64", *flags]
        program += ["-kernel", kernel, "-initrd", initrd, "-append", cmdline]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._text = b""
        self._expect(b"Linux version")
        begun = time.monotonic_ns()
        self._expect(b"=ready")
        self.phase = time.monotonic_ns() - begun

    def _expect(self, pattern: bytes) -> re.Match[bytes]:
        assert self._process.stdout is not None
        limit = time.monotonic() + _LIMIT
        while not (found := re.search(pattern, self._text)):
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece or time.monotonic() > limit:
                raise SystemExit(f"no {pattern!r} after {self._text[-500:]!r}")
            self._text += piece
        self._text = self._text[found.end() :]
        return found

    def run(self, number: str) -> tuple[int, int, int]:
        """One kernel: nanoseconds, result, and nanoseconds by the guest's clock."""
        assert self._process.stdin is not None
        begun = time.monotonic_ns()
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        found = self._expect(rf"={number} ([0-9a-f]{{16}}) (\d+)\r?\n".encode())
        return time.monotonic_ns() - begun, int(found[1], 16), int(found[2])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Serve the lines of stdin."""
    at = sys.argv.index("--")
    (initrd, cmdline, *kernels), flags = sys.argv[1:at], sys.argv[at + 1 :]
    lasting: Guest | None = None
    for line in sys.stdin:
        action, number = line.split()
        if action == "boot":
            guest = Guest(kernels[int(number)], initrd, cmdline, flags)
            print(guest.phase, flush=True)
            guest.close()
            continue
        lasting = lasting or Guest(kernels[0], initrd, cmdline, flags)
        print(*lasting.run(number), flush=True)
    if lasting:
        lasting.close()


if __name__ == "__main__":
    main()

"""The other reference: the program of `kernels.rs` on the host itself.

`native.py PROGRAM [PROCESSOR]` serves lines "run N": nanoseconds, the result, and nanoseconds by
the program's own clock.
"""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> None:
    """Serve the lines of stdin."""
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdout.readline()
    for line in sys.stdin:
        number = line.split()[1]
        begun = time.monotonic_ns()
        program.stdin.write(f"{number}\n".encode())
        program.stdin.flush()
        answer = program.stdout.readline().decode().split()
        print(time.monotonic_ns() - begun, int(answer[1], 16), int(answer[2]), flush=True)
    program.stdin.close()
    program.wait()


if __name__ == "__main__":
    main()

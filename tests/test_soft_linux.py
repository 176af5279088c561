"""Unmodified Debian kernels on the software CPU: every size of machine, several processors."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable

import pytest

import vmlet
from conftest import command, initramfs, kernels, limit

pytestmark = pytest.mark.interpreted

Make = Callable[..., vmlet.VM]

KERNELS = ("linux-6.1-cloud", "linux-6.12-cloud")
CPUS = (1, 2)
MEMORY = ("256M", "6G")
ALL = list(itertools.product(KERNELS, CPUS, MEMORY))
#: Every pair of values of two settings stands in one of these.
PAIRWISE = [
    ("linux-6.1-cloud", 1, "256M"),
    ("linux-6.12-cloud", 2, "256M"),
    ("linux-6.1-cloud", 2, "6G"),
    ("linux-6.12-cloud", 1, "6G"),
]
CASES = ALL if os.environ.get("VMLET_FULL_PRODUCT") else PAIRWISE
#: Work for each of four processors: processes, pipes and files, checked. What a loop prints is the
#: number it was given, six times, and where it ran if that is somewhere else.
WORK = """
mkdir -p /tmp
cat > /loop << 'EOF'
right=$(seq 1 400 | md5sum)
for round in 1 2 3 4 5 6; do
    sum=$(seq 1 400 | md5sum)
    [ "$sum" = "$right" ] || echo "cpu $1 wrong: $sum"
    seq $1 300 > /tmp/in$1 && sort -rn /tmp/in$1 | tail -n 1
done
read -r line < /proc/self/stat
set -- $1 $line
[ "${40}" = "$1" ] || echo "cpu $1 is ${40}"
EOF
for cpu in 0 1 2 3; do taskset -c $cpu sh /loop $cpu > /tmp/out$cpu 2>&1 & done
wait
cat /tmp/out?
"""


def test_pairwise_cases_hold_every_pair_of_values() -> None:
    for first, second in itertools.combinations(range(3), 2):
        wanted = {(case[first], case[second]) for case in ALL}
        assert {(case[first], case[second]) for case in PAIRWISE} == wanted


@pytest.mark.parametrize(("kernel", "cpus", "memory"), CASES)
def test_debian_reaches_a_shell_and_sees_its_machine(
    make: Make, kernel: str, cpus: int, memory: str
) -> None:
    vm = make(
        kernel=kernels()[kernel], initramfs=initramfs(), cpus=cpus, memory=memory, engine="soft"
    )
    vm.start()
    vm.console.expect("# ", timeout=limit(40))
    assert f" {kernel.split('-')[1]}." in command(vm, "uname -a")
    assert command(vm, "nproc") == str(cpus)
    total = int(command(vm, "grep MemTotal /proc/meminfo | tr -dc 0-9"))
    asked = vmlet.parse_size(memory) // 1024
    assert 0.75 * asked < total < asked
    vm.console.write("poweroff -f\n")
    assert vm.wait(timeout=limit(20)).kind == "poweroff"


def test_four_processors_work_at_once_each_where_it_belongs(make: Make) -> None:
    vm = make(
        kernel=kernels()["linux-6.1-cloud"],
        initramfs=initramfs(WORK),
        cpus=4,
        engine="soft",
    )
    vm.start()
    said = vm.console.expect("# ", timeout=limit(60)).string.decode().replace("\r", "")
    assert re.findall(r"cpu \d .*", said) == []
    lines = [line for line in said.splitlines() if line.isdigit()]
    assert lines == [number for cpu in range(4) for number in [str(cpu)] * 6]
    assert command(vm, "grep -c ^processor /proc/cpuinfo") == "4"
    said = command(vm, "dmesg | grep -i -E 'soft lockup|rcu.*stall|BUG:|WARNING:'")
    assert said == "", said

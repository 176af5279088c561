"""Draws how a running guest's address is translated, as an SVG picture.

Usage: draw_walk.py KERNEL FOLDER

KERNEL is a vmlinuz or vmlinux file. It is booted as far as its first line; then the walk of its
instruction pointer is drawn to FOLDER/walk.svg, and once more while the guest's writes are logged
to FOLDER/walk-logged.svg. The left half of a picture is the guest's own page tables, read from its
memory; the right half is what the memory slots say of the second stage (EPT or NPT), whose tables
are KVM's and cannot be read.
"""

from __future__ import annotations

import os
import sys
from html import escape
from pathlib import Path

import vmlet
from vmlet import SecondStage, Walk, WalkStep
from vmlet.inspection import size_name

# A slow host, an emulated one for example, says how much slower it is.
PATIENCE = float(os.environ.get("VMLET_TIME_FACTOR", "1"))

WIDTH, ROW, TOP = 1000, 92, 132
GUEST, STAGE = 40, 590
STYLE = """
text { font: 13px monospace; fill: #222 }
.title { font-weight: bold; font-size: 15px }
.small { font-size: 11px; fill: #555 }
.guest { fill: #e8f0fb; stroke: #3465a4 }
.stage { fill: #edf5e6; stroke: #4e7a1e }
.fault { fill: #fbe6e6; stroke: #a40000 }
.field { fill: #fff; stroke: #888 }
line { stroke: #555; marker-end: url(#arrow) }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text."""
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{mark}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def fields(walk: Walk) -> list[tuple[str, int, int]]:
    """The parts of the linear address: name, lowest bit, number of bits."""
    if walk.levels < 4:
        return []
    names = ["PML5", "PML4", "PDPT", "PD", "PT"][-walk.levels :]
    leaf = walk.steps[-1].level if walk.fault is None and walk.steps else 1
    parts = [
        (name, 12 + 9 * (level - 1), 9)
        for name, level in zip(names, range(walk.levels, 0, -1), strict=True)
        if level >= leaf
    ]
    return [*parts, ("offset", 0, 12 + 9 * (leaf - 1))]


def address_bar(walk: Walk) -> list[str]:
    """The linear address, cut into the indexes of its tables."""
    parts, x = [], GUEST
    for name, low, bits in fields(walk):
        value = walk.address >> low & ((1 << bits) - 1)
        width = 96 if name != "offset" else 150
        parts += [
            box(x, 62, width, 40, "field"),
            text(x + 6, 78, f"{name} {low + bits - 1}:{low}", "small"),
            text(x + 6, 95, f"{value:#x}" if name == "offset" else str(value)),
        ]
        x += width
    return parts


def stage_box(y: float, stage: SecondStage | None) -> list[str]:
    """What the memory slots say of a guest-physical address."""
    if stage is None:
        return [box(STAGE, y, 370, 56, "fault"), text(STAGE + 10, y + 33, "no memory: MMIO")]
    limit = "" if stage.limit == "none" else f", larger ones: {stage.limit}"
    return [
        box(STAGE, y, 370, 56, "stage"),
        text(STAGE + 10, y + 17, f"slot {stage.slot} {stage.slot_gpa:#x}+{stage.slot_length:#x}"),
        text(STAGE + 10, y + 34, f"in this process at {stage.hva:#x}"),
        text(STAGE + 10, y + 50, f"pages up to {size_name(stage.page_size)}{limit}", "small"),
    ]


def step_box(y: float, step: WalkStep) -> list[str]:
    """One entry of the guest's tables."""
    present = bool(step.entry & 1)
    allowed = [("write", step.writable), ("user", step.user), ("execute", step.executable)]
    rights = ", ".join(name for name, on in allowed if on) or "nothing but reads"
    size = f"page of {size_name(step.page_size)}" if step.page_size else "table"
    return [
        box(GUEST, y, 430, 56, "guest" if present else "fault"),
        text(GUEST + 10, y + 17, f"{step.name} at {step.gpa:#x}"),
        text(GUEST + 10, y + 34, f"entry {step.entry:#018x} -> {size if present else 'nothing'}"),
        text(GUEST + 10, y + 50, f"allowed so far: {rights}" if present else "absent", "small"),
    ]


def end_box(y: float, walk: Walk) -> list[str]:
    """The page, or the fault."""
    if walk.gpa is None:
        return [
            box(GUEST, y, 430, 56, "fault"),
            text(GUEST + 10, y + 33, f"fault: {walk.fault}"),
        ]
    size = size_name(walk.page_size or 4096)
    return [
        box(GUEST, y, 430, 56, "guest"),
        text(GUEST + 10, y + 24, f"guest-physical {walk.gpa:#x}"),
        text(GUEST + 10, y + 43, f"in a page of {size}", "small"),
        *stage_box(y, walk.second_stage),
        arrow(GUEST + 430, y + 28, STAGE - 4, y + 28),
    ]


def reads(walk: Walk) -> int:
    """Entries that a processor without any cached translation reads in both stages.

    With second-stage pages as large as the slots allow; four levels in the second stage.
    """
    depth = {4096: 4, 2 << 20: 3, 1 << 30: 2}
    stages = [step.second_stage for step in walk.steps] + [walk.second_stage]
    return len(walk.steps) + sum(depth[stage.page_size] for stage in stages if stage)


def draw(walk: Walk, title: str) -> str:
    """The picture of a walk."""
    parts = [
        text(GUEST, 30, title, "title"),
        text(GUEST, 50, f"linear {walk.address:#x}, {walk.levels} levels, CR3 {walk.cr3:#x}"),
        *address_bar(walk),
        text(GUEST, TOP - 8, "the guest's page tables", "small"),
        text(STAGE, TOP - 8, "the second stage, as the memory slots guarantee it", "small"),
    ]
    y = TOP
    for step in walk.steps:
        parts += [
            *step_box(y, step),
            *stage_box(y, step.second_stage),
            arrow(GUEST + 430, y + 28, STAGE - 4, y + 28),
            arrow(GUEST + 215, y + 56, GUEST + 215, y + ROW - 4),
        ]
        y += ROW
    parts += end_box(y, walk)
    if walk.fault is None:
        caption = f"{reads(walk)} entries are read in both stages when nothing is cached"
        parts.append(text(GUEST, y + 80, caption, "small"))
    height = y + 100
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{STYLE}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main(kernel: str, folder: Path) -> None:
    """Boots the kernel and draws."""
    folder.mkdir(parents=True, exist_ok=True)
    with vmlet.VM(kernel=kernel, memory="256M") as vm:
        vm.start()
        vm.console.expect("Linux version", timeout=20 * PATIENCE)
        vm.pause()
        address = vm.vcpus[0].regs.rip
        for name, title in (
            ("walk", "A kernel's instruction pointer"),
            ("walk-logged", "The same while writes are logged"),
        ):
            walk = vm.walk(address)
            target = folder / f"{name}.svg"
            target.write_text(draw(walk, title))
            print(walk, f"written to {target}\n", sep="\n")
            vm.memory.dirty()
        print(vm.memory.page_sizes())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))

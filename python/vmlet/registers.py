"""The registers of a vCPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Regs:
    """The general registers."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def __str__(self) -> str:
        """The registers in rows of four.

        >>> str(Regs(rax=1)).split()[:2]
        ['rax', '0000000000000001']
        """
        cells = [f"{f.name:>6} {getattr(self, f.name):016x}" for f in fields(self)]
        return "\n".join(" ".join(cells[at : at + 4]) for at in range(0, len(cells), 4))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part."""

    base: int
    limit: int
    selector: int
    #: Bits 0-3 type, 4 S, 5-6 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G of the descriptor's upper half,
    #: shifted to 0-7 and 12-15.
    attributes: int


@dataclass(frozen=True, slots=True)
class Table:
    """A descriptor table register."""

    base: int
    limit: int


@dataclass(frozen=True, slots=True)
class Sregs:
    """Segments, control registers and descriptor tables."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Table
    idt: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


def sregs_of(values: dict[str, int | tuple[int, ...]]) -> Sregs:
    """Segments and control registers as the core gives them."""
    parts: dict[str, int | Segment | Table] = {}
    for name, value in values.items():
        if isinstance(value, int):
            parts[name] = value
        else:
            parts[name] = Table(*value) if name in ("gdt", "idt") else Segment(*value)
    return Sregs(**parts)  # type: ignore[arg-type]


def values_of(sregs: Sregs) -> dict[str, int | tuple[int, ...]]:
    """Segments and control registers as the core takes them."""
    values: dict[str, int | tuple[int, ...]] = {}
    for field in fields(sregs):
        value = getattr(sregs, field.name)
        values[field.name] = value if isinstance(value, int) else tuple(asdict(value).values())
    return values

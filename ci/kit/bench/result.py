"""What a benchmark found: one JSON object, and a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .statistics import Verdict


@dataclass(frozen=True)
class Row:
    """One figure of vmlet's against its reference."""

    row: str
    unit: str
    vmlet: float
    reference: float
    reference_name: str
    ratio: float
    """Cost over cost: lower is better, 1 is equal."""
    control: float
    """The reference against itself."""
    rounds: int
    limit: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Result:
    """A benchmark's rows and what they belong to."""

    bench: str
    engine: str
    host: str
    rows: Sequence[Row]


def to_json(result: Result) -> str:
    """The object in one line."""
    rows = [
        {
            "row": row.row,
            "unit": row.unit,
            "vmlet": round(row.vmlet, 3),
            "reference": round(row.reference, 3),
            "reference_name": row.reference_name,
            "ratio": round(row.ratio, 4),
            "control": round(row.control, 4),
            "rounds": row.rounds,
        }
        for row in result.rows
    ]
    told = {"bench": result.bench, "engine": result.engine, "host": result.host, "rows": rows}
    return json.dumps(told)


def to_table(result: Result) -> list[str]:
    """The rows as aligned lines, with their limits and verdicts."""
    head = ["row", "unit", "vmlet", "reference", "ratio", "limit", "control", "rounds", "verdict"]
    cells = [head, *(_cells(row) for row in result.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    names = {row.row: row.reference_name for row in result.rows}
    notes = [f"  {row}: the reference is {name}" for row, name in names.items()]
    return [f"{result.bench} ({result.engine}; {result.host})", *lines, *notes]


def _cells(row: Row) -> list[str]:
    limit = "-" if row.limit is None else f"{row.limit:.2f}"
    figures = [f"{row.vmlet:.1f}", f"{row.reference:.1f}", f"{row.ratio:.3f}", limit]
    ends = [f"{row.control:.3f}", str(row.rounds), row.verdict.value]
    return [row.row, row.unit, *figures, *ends]

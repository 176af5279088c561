"""The workspace against ARCHITECTURE.md: edges, dependencies, unsafe code, files."""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .markdown import names, table
from .paths import REPOSITORY

PREFIX = "vmlet-"
MAX_LINES = 600
FORBIDDEN = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
_ROOM = "Room:"
_SOURCES = {".c", ".h", ".py", ".pyi", ".rs", ".sh", ".S"}
_SKIPPED = {"target", "build", "dist", "__pycache__", "corpus", "artifacts"}
_ROOTS = ("lib.rs", "main.rs")
_EXEMPTION = re.compile(r"#!?\[\s*(?:expect|allow)\s*\(\s*unsafe_code\b")


@dataclass(frozen=True)
class Rules:
    """What ARCHITECTURE.md says."""

    may_use: dict[str, set[str]]  # crate -> crates
    rooms: set[str]  # rows without a crate yet
    users: dict[str, set[str]]  # external dependency -> crates
    unsafe_files: set[str]


def read_rules(text: str) -> Rules:
    """Parse the three tables that this script enforces."""
    may_use: dict[str, set[str]] = {}
    rooms: set[str] = set()
    for crate, responsibility, uses, *_ in table(text, "Layers"):
        (name,) = names(crate)
        may_use[name] = set(names(uses))
        if responsibility.startswith(_ROOM):
            rooms.add(name)
    users = {
        dependency: set(names(crates))
        for row, crates, *_ in table(text, "Dependencies")
        for dependency in names(row)
    }
    unsafe_files = {name for row in table(text, "Unsafe code") for name in names(row[0])}
    return Rules(may_use, rooms, users, unsafe_files)


def dependencies(root: Path) -> dict[str, set[str]]:
    """What each crate of the workspace depends on, of any kind, by package name."""
    workspace = tomllib.loads((root / "Cargo.toml").read_text())
    shared = workspace.get("workspace", {}).get("dependencies", {})
    found: dict[str, set[str]] = {}
    for manifest in sorted(root.glob("crates/*/Cargo.toml")):
        crate = tomllib.loads(manifest.read_text())
        tables = [crate, *crate.get("target", {}).values()]
        found[manifest.parent.name] = {
            _package(name, wanted, shared)
            for part in tables
            for kind in ("dependencies", "dev-dependencies", "build-dependencies")
            for name, wanted in part.get(kind, {}).items()
        }
    return found


def _package(name: str, wanted: object, shared: dict[str, object]) -> str:
    """The package behind a key of a dependency table, which may be an alias."""
    for entry in (wanted, shared.get(name)):
        if isinstance(entry, dict) and "package" in entry:
            return str(entry["package"])
    return name


def check_edges(rules: Rules, found: dict[str, set[str]]) -> Iterator[str]:
    """Crates that the table lacks, and edges that it does not allow."""
    for crate in sorted(rules.may_use.keys() - rules.rooms - found.keys()):
        yield f"crates/{crate} is in the table of layers, but not there: mark it as a room"
    for crate, wanted in found.items():
        if crate not in rules.may_use:
            yield f"crates/{crate} has no row in the table of layers"
            continue
        if crate in rules.rooms:
            yield f"crates/{crate} is there, but the table of layers calls it a room"
        inner = {name.removeprefix(PREFIX) for name in wanted if name.startswith(PREFIX)}
        for other in sorted(inner - rules.may_use[crate]):
            yield f"crates/{crate} uses {other}: the table of layers does not allow it"


def check_dependencies(rules: Rules, found: dict[str, set[str]]) -> Iterator[str]:
    """External dependencies without a stated reason, or used by another crate than stated."""
    for crate, wanted in found.items():
        for name in sorted(name for name in wanted if not name.startswith(PREFIX)):
            if name not in rules.users:
                yield f"crates/{crate} depends on {name}: the table of dependencies lacks it"
            elif crate not in rules.users[name]:
                yield f"crates/{crate} depends on {name}: the table names other crates only"
    everything = {name for wanted in found.values() for name in wanted}
    for name in sorted(rules.users.keys() - everything):
        yield f"the table of dependencies has {name}, which no crate uses"


def check_unsafe(rules: Rules, root: Path) -> Iterator[str]:
    """Files that may hold unsafe code, but are not listed; listed ones that may not."""
    exempt = {
        str(path.relative_to(root))
        for path in sources(root)
        if path.suffix == ".rs"
        and "crates" in path.relative_to(root).parts
        and _EXEMPTION.search(path.read_text())
    }
    for path in sorted(exempt - rules.unsafe_files):
        yield f"{path} allows itself unsafe code: the table of unsafe code lacks it"
    for path in sorted(rules.unsafe_files - exempt):
        yield f"{path} is in the table of unsafe code, but has no expectation for it"


def sources(root: Path) -> Iterator[Path]:
    """The source files and scripts of the repository."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in _SKIPPED and not name.startswith(".")
        )
        for path in (Path(folder, name) for name in sorted(files)):
            if path.suffix in _SOURCES or (not path.suffix and os.access(path, os.X_OK)):
                yield path


def check_files(root: Path) -> Iterator[str]:
    """Files that are too long, and names that say nothing."""
    for path in sources(root):
        name = path.relative_to(root)
        lines = path.read_bytes().count(b"\n")
        if lines > MAX_LINES:
            yield f"{name} has {lines} lines: the limit is {MAX_LINES}"
        for part in (*name.parts[:-1], name.stem):
            if part.removeprefix(PREFIX) in FORBIDDEN:
                yield f"{name}: the name {part!r} says nothing about what is in it"


def check_modules(root: Path) -> Iterator[str]:
    """Files of Rust that no module declares: they are not compiled, and their tests never run."""
    for path in sorted(root.glob("crates/*/*/**/*.rs")):
        folder, name = path.parent, path.stem
        # A file in a crate's `tests` or `benches` is a program of its own.
        alone = folder.parent.parent == root / "crates" and folder.name != "src"
        if alone or path.name in _ROOTS:
            continue
        if path.name == "mod.rs":
            folder, name = folder.parent, folder.name
        parents = [*(folder / parent for parent in (*_ROOTS, "mod.rs")), folder.with_suffix(".rs")]
        texts = [parent.read_text() for parent in parents if parent.is_file()]
        declared = re.compile(rf"^\s*(?:pub.*\s)?mod {name};", re.MULTILINE)
        if not any(declared.search(text) for text in texts):
            yield f"{path.relative_to(root)} is no module of its crate: nothing declares it"


def problems(root: Path) -> list[str]:
    """Everything wrong with the repository at `root`."""
    try:
        rules = read_rules((root / "ARCHITECTURE.md").read_text())
    except (OSError, ValueError) as error:
        return [f"ARCHITECTURE.md: {error}"]
    found = dependencies(root)
    return [
        *check_edges(rules, found),
        *check_dependencies(rules, found),
        *check_unsafe(rules, root),
        *check_files(root),
        *check_modules(root),
    ]


def main(arguments: list[str]) -> int:
    """Check a repository; print what is wrong."""
    parser = argparse.ArgumentParser(prog="ci/layers", description=__doc__)
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="the repository to check")
    found = problems(parser.parse_args(arguments).root.resolve())
    for problem in found:
        print(problem)
    print(f"layers: {len(found)} problem{'' if len(found) == 1 else 's'}")
    return 1 if found else 0

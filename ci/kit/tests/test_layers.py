"""`ci/layers` finds what it is for: in a copy of the workspace with one thing wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kit import layers
from kit.paths import REPOSITORY


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of what the check reads."""
    for name in ("ARCHITECTURE.md", "Cargo.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "crates", tmp_path / "crates")
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_the_workspace_agrees_with_its_architecture(workspace: Path) -> None:
    assert layers.problems(workspace) == []


def test_an_edge_between_engine_and_devices_is_found(workspace: Path) -> None:
    manifest = workspace / "crates" / "bus" / "Cargo.toml"
    text = manifest.read_text()
    manifest.write_text(
        text.replace("[dependencies]\n", "[dependencies]\nvmlet-vcpu.workspace = true\n", 1)
    )
    (problem,) = layers.problems(workspace)
    assert "crates/bus uses vcpu" in problem


def test_an_edge_of_tests_only_is_found_too(workspace: Path) -> None:
    append(
        workspace / "crates" / "host" / "Cargo.toml",
        "\n[target.'cfg(unix)'.dev-dependencies]\nvmlet-machine.workspace = true\n",
    )
    assert any("crates/host uses machine" in problem for problem in layers.problems(workspace))


def test_a_dependency_without_a_reason_is_found(workspace: Path) -> None:
    append(
        workspace / "crates" / "boot" / "Cargo.toml",
        '\n[target."cfg(unix)".dependencies]\nregex = "1"\n',
    )
    (problem,) = layers.problems(workspace)
    assert "depends on regex" in problem


def test_unsafe_code_outside_the_listed_files_is_found(workspace: Path) -> None:
    source = workspace / "crates" / "boot" / "src" / "new.rs"
    append(source.with_name("lib.rs"), "mod new;\n")
    source.write_text('#![expect(unsafe_code, reason = "because")]\n')
    (problem,) = layers.problems(workspace)
    assert "crates/boot/src/new.rs" in problem


def test_a_long_file_and_a_name_that_says_nothing_are_found(workspace: Path) -> None:
    (workspace / "crates" / "boot" / "src" / "utils.rs").write_text("//\n" * 601)
    append(workspace / "crates" / "boot" / "src" / "lib.rs", "mod utils;\n")
    assert len(layers.problems(workspace)) == 2


def test_a_file_that_no_module_declares_is_found(workspace: Path) -> None:
    tests = workspace / "crates" / "machine" / "tests" / "tiny_guests"
    main = tests / "main.rs"
    main.write_text(main.read_text().replace("mod page_sizes;\n", ""))
    (problem,) = layers.problems(workspace)
    assert "tiny_guests/page_sizes.rs is no module" in problem


def test_a_crate_without_a_row_is_found(workspace: Path) -> None:
    extra = workspace / "crates" / "extra"
    extra.mkdir()
    (extra / "Cargo.toml").write_text('[package]\nname = "vmlet-extra"\n')
    (problem,) = layers.problems(workspace)
    assert "crates/extra has no row" in problem

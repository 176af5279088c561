"""L1's root holds what the command needs, at the host's paths, and what it leaves comes back."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from labkit.bochs import contents, distributions
from labkit.bochs.collected import unpack
from labkit.bochs.image import image_size
from labkit.bochs.models import MODELS, by_name
from labkit.bochs.tree import Entry, Tree
from labkit.errors import LabError
from labkit.guest import Command


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Files with links among them, of files and of folders."""
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "usr" / "lib" / "real.so.1").write_text("library")
    (tmp_path / "usr" / "lib" / "real.so").symlink_to("real.so.1")
    (tmp_path / "lib").symlink_to("usr/lib")
    return tmp_path


def test_links_are_kept_and_what_they_lead_to_is_there(host: Path) -> None:
    tree = Tree()
    tree.add(host / "lib" / "real.so")
    assert tree.entries[host / "lib"].link == "usr/lib"
    assert tree.entries[host / "usr" / "lib" / "real.so"].link == "real.so.1"
    assert tree.entries[host / "usr" / "lib" / "real.so.1"].source is not None
    assert tree.entries[host / "usr"] == Entry()


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    tree = Tree()
    tree.add(tmp_path / "a")
    assert tree.entries[tmp_path / "a"].link == "b"


def test_a_tree_is_written_with_times_and_modes(host: Path, tmp_path: Path) -> None:
    program = host / "usr" / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    os.utime(program, (1, 1))
    tree = Tree()
    tree.add(program)
    tree.write(Path("/etc/group"), "root:x:0:\n")
    out = tmp_path / "written"
    tree.write_out(out)
    copy = out / program.relative_to("/")
    assert copy.stat().st_mode & 0o777 == 0o755
    assert copy.stat().st_mtime == 1
    assert (out / "etc/group").read_text() == "root:x:0:\n"


def test_a_digest_follows_content_mode_and_links(host: Path) -> None:
    file = host / "usr" / "lib" / "real.so.1"

    def digest() -> str:
        tree = Tree()
        tree.add(host / "lib" / "real.so")
        return tree.digest()

    first = digest()
    os.utime(file, (5, 5))
    assert digest() == first
    file.chmod(0o700)
    second = digest()
    assert second != first
    file.write_text("other")
    assert digest() not in (first, second)


def test_a_file_can_stand_for_another(host: Path, tmp_path: Path) -> None:
    (tmp_path / "stripped").write_text("small")
    tree = Tree()
    tree.add(host / "lib" / "real.so", source=tmp_path / "stripped")
    assert tree.entries[host / "usr" / "lib" / "real.so.1"].source == tmp_path / "stripped"


def test_an_image_has_room_and_whole_units() -> None:
    size = image_size(100 << 20)
    assert size > 100 << 20
    assert size % (16 << 20) == 0


def test_requirements_leave_extras_out() -> None:
    text = (
        "Name: x\nRequires-Dist: pluggy<2,>=1.5\nRequires-Dist: ini.config\n"
        'Requires-Dist: argcomplete; extra == "dev"\n\nRequires-Dist: not-a-header\n'
    )
    assert distributions.requirements(text) == ["pluggy", "ini_config"]


def test_a_distribution_brings_what_it_requires(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3" / "site-packages"
    for name, requires in (("one", "Two"), ("two", "absent"), ("other", "one")):
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nRequires-Dist: {requires}\n")
        (folder / "RECORD").write_text(f"{name}.py,sha256=x,1\n../../../bin/{name},,\nlost.py,,\n")
        (site / f"{name}.py").write_text("")
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("")
    found = {path.relative_to(tmp_path) for path in distributions.files(site, ("one",))}
    packages = Path("lib/python3/site-packages")
    assert found == {packages / "one.py", packages / "two.py", Path("bin/one"), Path("bin/two")}


def test_libraries_are_read_from_a_listing() -> None:
    listing = (
        "/usr/bin/one:\n\tlinux-vdso.so.1 (0x00007fff)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n/usr/bin/two:\n\tnot a dynamic executable\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f02)\n\tlibno.so => not found\n"
    )
    expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
    assert [str(path) for path in contents.libraries(listing)] == expected


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("os.py", True), ("os.cpython-311.pyc", True), ("os.cpython-311.opt-1.pyc", False),
     ("_testcapi.so", False), ("_socket.so", True)],
)  # fmt: skip
def test_the_library_comes_without_tests_and_other_levels(name: str, wanted: bool) -> None:
    assert contents.wanted_of_library(name) is wanted


def test_files_among_the_words_are_named(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    (tmp_path / "folder").mkdir()
    words = ("python3", "script.py", str(tmp_path / "script.py"), "folder", "x" * 5000)
    command = Command(words, cwd=tmp_path, out=tmp_path, venv=tmp_path)
    assert set(contents.named(command)) == {tmp_path / "script.py"}


def test_folders_are_left_out_by_their_whole_name(tmp_path: Path) -> None:
    for name in ("test", "testing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("")
    found = list(contents.files_below(tmp_path, contents._LIBRARY_PARTS))
    assert found == [tmp_path / "testing" / "x.py"]


def archive(*members: tuple[str, bytes | None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def test_files_come_back_with_their_folders(tmp_path: Path) -> None:
    unpack(archive(("./sub/result", b"data")), tmp_path)
    assert (tmp_path / "sub" / "result").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "sub/../../outside"])
def test_no_file_leaves_the_output_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match="outside"):
        unpack(archive((name, b"x")), tmp_path)


def test_links_are_not_made_and_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    unpack(archive(("link", None)), out)
    assert not (out / "link").is_symlink()
    (out / "here").symlink_to(tmp_path)
    with pytest.raises(LabError, match="symbolic link"):
        unpack(archive(("here/file", b"x")), out)


@pytest.mark.parametrize("data", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_a_failure_of_the_lab(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(LabError):
        unpack(data, tmp_path)


def test_an_unknown_model_is_refused_with_all_names() -> None:
    with pytest.raises(LabError, match=", ".join(MODELS)):
        by_name("i486")

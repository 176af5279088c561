"""Kernels of the host and of the cache, and fetching one from an archive made here."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kernel_archive import Archive, file_member, kernel_members, missing_tools
from vmlet import kernels
from vmlet.errors import ConfigError, Error, HostError, KernelError, UnsupportedError
from vmlet.kernels import apt, cache, fetching
from vmlet.kernels.kernel import in_series, split_release

RELEASE = "6.1.0-9-cloud-amd64"
PACKAGE = f"linux-image-{RELEASE}"

needs_archive = pytest.mark.skipif(
    bool(missing_tools()), reason=f"missing tools for an archive: {', '.join(missing_tools())}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMLET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def fetch(archive: Archive, package: str = PACKAGE, **options: object) -> kernels.Kernel:
    return kernels.fetch(
        package,
        mirror=archive.url,
        suite=archive.suite,
        keyring=archive.keyring,
        **options,  # type: ignore[arg-type]
    )


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("fetch-*")]


@pytest.mark.parametrize(
    ("release", "version", "flavour"),
    [
        ("6.1.0-56-cloud-amd64", "6.1.0-56", "cloud"),
        ("6.1.0-56-amd64", "6.1.0-56", ""),
        ("6.12.117+deb12-cloud-amd64", "6.12.117+deb12", "cloud"),
        ("6.1.0-0.deb11.5-rt-amd64", "6.1.0-0.deb11.5", "rt"),
        ("6.8.0-31-generic", "6.8.0-31", "generic"),
        ("6.9.1", "6.9.1", ""),
        ("custom", "custom", ""),
    ],
)
def test_release_splits_into_version_and_flavour(release: str, version: str, flavour: str) -> None:
    assert split_release(release) == (version, flavour)


@pytest.mark.parametrize(
    ("version", "series", "inside"),
    [("6.1.0-56", "6.1", True), ("6.10.2", "6.1", False), ("6.1.0-56", "6.1.0-5", False)],
)
def test_series_ends_at_a_separator(version: str, series: str, inside: bool) -> None:
    assert in_series(version, series) is inside


def make_host(root: Path) -> Path:
    for name in ("boot/vmlinuz-6.1.0-2-amd64", "lib/modules/6.12.3-cloud-amd64/vmlinuz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"K")
    return root


def test_kernels_of_the_host_are_listed_newest_first(tmp_path: Path) -> None:
    found = kernels.list_kernels(root=make_host(tmp_path / "host"))
    assert [one.name for one in found] == ["6.12.3-cloud", "6.1.0-2"]
    assert [one.origin for one in found] == ["host", "host"]
    assert found[0].modules_dir == tmp_path / "host/lib/modules/6.12.3-cloud-amd64"
    assert found[1].modules_dir is None


def test_name_and_series_find_a_kernel(tmp_path: Path) -> None:
    host = make_host(tmp_path / "host")
    for name, wanted in [
        ("6.1", "6.1.0-2"),
        ("6.12-cloud", "6.12.3-cloud"),
        ("6.1.0-2", "6.1.0-2"),
    ]:
        found = kernels.find_kernel(name, root=host)
        assert isinstance(found, kernels.Kernel)
        assert found.name == wanted


def test_unknown_name_lists_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"6\.12\.3-cloud") as caught:
        kernels.find_kernel("6.13-cloud", root=make_host(tmp_path / "host"))
    assert "vmlet kernel fetch 6.13-cloud" in str(caught.value)


def test_path_is_taken_as_it_is(tmp_path: Path) -> None:
    image = tmp_path / "6.1"
    image.write_bytes(b"")
    assert kernels.find_kernel(image) == image


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMLET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert kernels.cache_directory() == Path("/x/vmlet")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/h")
    assert kernels.cache_directory() == Path("/h/.cache/vmlet")


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(HostError("full", errno=errno.ENOSPC, remedy="free some")))
    assert (error.errno, error.remedy, str(error)) == (errno.ENOSPC, "free some", "full\nfree some")


@needs_archive
def test_fetched_kernel_is_listed_and_whole(archive: Archive, own_cache: Path) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    kernel = fetch(archive)
    assert kernel.path.read_bytes() == b"K" * 4096
    assert kernel.modules_dir is not None
    assert (kernel.modules_dir / "kernel/a.ko").read_bytes() == b"M" * 100
    assert kernel.package == f"{PACKAGE}=1.0-1"
    assert kernel in kernels.list_kernels()
    assert kernels.find_kernel("6.1-cloud") == kernel
    assert not list(own_cache.rglob("doc"))
    assert not leftovers(own_cache)


@needs_archive
def test_series_takes_the_newest_and_prefers_cloud(archive: Archive) -> None:
    for release in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.1.0-11-amd64"):
        archive.add(f"linux-image-{release}", kernel_members(release))
    archive.add("linux-image-6.1.0-12-cloud-amd64-dbg", kernel_members("x"))
    archive.publish()
    assert fetch(archive, "6.1").name == "6.1.0-10-cloud"
    assert fetch(archive, "6.1-amd64").name == "6.1.0-11"
    assert fetch(archive, "cloud").name == "6.1.0-10-cloud"


@needs_archive
def test_meta_package_is_followed_and_parts_are_joined(archive: Archive) -> None:
    release = "6.8.0-31-generic"
    image, *rest = kernel_members(release)
    modules = f"linux-modules-{release}"
    archive.add("linux-image-generic", [], depends=f"linux-image-{release} (= 1.0-1), other")
    archive.add(f"linux-image-{release}", [image], depends=f"kmod, {modules}")
    archive.add(modules, rest)
    archive.publish()
    kernel = fetch(archive, "linux-image-generic")
    assert kernel.name == "6.8.0-31-generic"
    assert kernel.modules_dir is not None
    assert (kernel.modules_dir / "kernel/a.ko").exists()


@needs_archive
def test_unknown_package_names_near_ones(archive: Archive) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    with pytest.raises(ConfigError, match=PACKAGE) as caught:
        fetch(archive, "linux-image-6.1.0-8-cloud-amd64")
    assert caught.value.remedy is not None


@needs_archive
def test_package_that_differs_from_the_index_is_refused(archive: Archive, own_cache: Path) -> None:
    deb = archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    data = bytearray(deb.read_bytes())
    data[-20] ^= 1
    deb.write_bytes(data)
    with pytest.raises(KernelError, match="digest differs"):
        fetch(archive)
    assert not kernels.list_kernels(root=own_cache)
    assert not leftovers(own_cache)


@needs_archive
def test_digest_is_compared_again_after_apt(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    real = apt.Apt.show

    def other_digest(self: apt.Apt, *words: str) -> dict[str, str] | None:
        record = real(self, *words)
        return record and {**record, "SHA256": "0" * 64}

    monkeypatch.setattr(apt.Apt, "show", other_digest)
    with pytest.raises(KernelError, match="digest differs"):
        fetch(archive)


@needs_archive
def test_unsigned_archive_is_refused(archive: Archive) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    (archive.path / "dists" / archive.suite / "InRelease").unlink()
    with pytest.raises(KernelError, match="not signed"):
        fetch(archive)


@needs_archive
def test_archive_signed_by_another_key_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    other = Archive(tmp_path / "other")
    other.publish()
    with pytest.raises(KernelError, match="not signed by a trusted key"):
        kernels.fetch(PACKAGE, mirror=archive.url, suite=archive.suite, keyring=other.keyring)


@needs_archive
def test_package_over_the_limit_is_refused_and_leaves_nothing(
    archive: Archive, own_cache: Path
) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE, size=32 << 20))
    archive.publish()
    with pytest.raises(KernelError, match="limit of 16777216 bytes"):
        fetch(archive, max_unpacked=16 << 20)
    assert not kernels.list_kernels(root=own_cache)
    assert not leftovers(own_cache)
    assert fetch(archive, max_unpacked=64 << 20).path.stat().st_size == 32 << 20


@needs_archive
def test_unwanted_files_count_against_the_limit(archive: Archive) -> None:
    members = [file_member("./usr/share/filler", b"\0" * (8 << 20)), *kernel_members(RELEASE)]
    archive.add(PACKAGE, members)
    archive.publish()
    with pytest.raises(KernelError, match="over the limit"):
        fetch(archive, max_unpacked=4 << 20)


def device_node() -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo("./boot/null")
    member.type = tarfile.CHRTYPE
    return member, b""


def long_header() -> tuple[tarfile.TarInfo, bytes]:
    return file_member("boot/" + "x" * (4 << 20), b"")


@needs_archive
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (file_member("./boot/../../../escaped", b"x"), "leads out of it"),
        (file_member("/boot/escaped", b"x"), "leads out of it"),
        (device_node(), "no kernel package has"),
        (long_header(), "headers are longer"),
    ],
    ids=["parent", "absolute", "device", "header"],
)
def test_hostile_member_is_refused(
    archive: Archive, own_cache: Path, member: tuple[tarfile.TarInfo, bytes], message: str
) -> None:
    archive.add(PACKAGE, [member, *kernel_members(RELEASE)])
    archive.publish()
    with pytest.raises(KernelError, match=message):
        fetch(archive)
    assert not list(own_cache.parent.rglob("escaped"))
    assert not leftovers(own_cache)


@needs_archive
def test_link_out_of_the_package_is_not_made(archive: Archive, own_cache: Path) -> None:
    link = tarfile.TarInfo("./lib/modules/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/"
    through = file_member("./lib/modules/link/through", b"x")
    archive.add(PACKAGE, [(link, b""), through, *kernel_members(RELEASE)])
    archive.publish()
    kernel = fetch(archive)
    root = kernel.path.parent.parent
    assert not [path for path in root.rglob("*") if path.is_symlink()]
    assert (root / "lib/modules/link/through").read_bytes() == b"x"


@needs_archive
def test_package_without_a_kernel_is_refused(archive: Archive) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE)[1:])
    archive.publish()
    with pytest.raises(KernelError, match="holds no boot/vmlinuz"):
        fetch(archive)


@needs_archive
def test_damaged_package_with_a_true_digest_is_refused(archive: Archive) -> None:
    deb = archive.add(PACKAGE, kernel_members(RELEASE))
    archive.records.clear()
    content = deb.read_bytes()
    cut = content[: len(content) // 2]
    deb.unlink()
    archive.add(PACKAGE, kernel_members(RELEASE))
    deb.write_bytes(cut)
    import hashlib

    record = archive.records[0]
    lines = [line for line in record.splitlines() if not line.startswith(("Size", "SHA256"))]
    lines += [f"Size: {len(cut)}", f"SHA256: {hashlib.sha256(cut).hexdigest()}", ""]
    archive.records = ["\n".join(lines)]
    archive.publish()
    with pytest.raises(KernelError, match="is damaged"):
        fetch(archive)


@needs_archive
def test_cached_kernel_needs_no_archive(archive: Archive) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    first = fetch(archive)
    (archive.path / "dists").rename(archive.path / "gone")
    assert fetch(archive) == first
    with pytest.raises(Error):
        fetch(archive, refresh=True)
    assert first.path.exists()


@needs_archive
@pytest.mark.parametrize("damage", ["module", "image", "record", "missing"])
def test_damaged_entry_is_made_again(archive: Archive, damage: str) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    kernel = fetch(archive)
    assert kernel.modules_dir is not None
    module = kernel.modules_dir / "kernel/a.ko"
    if damage == "module":
        module.write_bytes(b"X" * 100)
    elif damage == "image":
        kernel.path.write_bytes(b"short")
        assert kernel not in kernels.list_kernels()
    elif damage == "record":
        (kernel.path.parents[2] / "entry.json").write_text('{"format": 1, "files": 5}')
        assert kernel not in kernels.list_kernels()
    else:
        module.unlink()
    assert fetch(archive) == kernel
    assert module.read_bytes() == b"M" * 100
    assert kernel.path.read_bytes() == b"K" * 4096


def test_record_whose_paths_lead_out_is_no_record() -> None:
    record = cache.Record("p", "1", "r", "../x", (cache.Stored("../x", 1, "0"),))
    with pytest.raises(ValueError, match="leads out"):
        cache.Record.from_json(record.to_json())


@needs_archive
def test_two_fetches_at_once_give_one_kernel(archive: Archive, own_cache: Path) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE, size=8 << 20))
    archive.publish()
    script = (
        "import sys; from vmlet import kernels; "
        "print(kernels.fetch(sys.argv[1], mirror=sys.argv[2], suite=sys.argv[3], "
        "keyring=sys.argv[4], refresh=sys.argv[5] == 'refresh').path)"
    )
    words = [PACKAGE, archive.url, archive.suite, str(archive.keyring)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words, mode], stdout=subprocess.PIPE, text=True
        )
        for mode in ("refresh", "refresh", "cached")
    ]
    said = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(said) == 1
    assert Path(said.pop().strip()).stat().st_size == 8 << 20
    assert not leftovers(own_cache)


@needs_archive
def test_archive_of_the_hosts_configuration_is_left_alone(
    archive: Archive, own_cache: Path
) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    before = os.stat("/var/lib/apt/lists").st_mtime_ns
    fetch(archive)
    assert os.stat("/var/lib/apt/lists").st_mtime_ns == before


@needs_archive
def test_unreachable_mirror_is_a_host_error(archive: Archive) -> None:
    archive.publish()
    with pytest.raises(HostError, match="no connection") as caught:
        kernels.fetch(
            PACKAGE, mirror="http://127.0.0.1:9/none", suite="stable", keyring=archive.keyring
        )
    assert caught.value.errno == errno.ENETUNREACH
    assert "--mirror" in str(caught.value)


@pytest.mark.skipif(bool(missing_tools()), reason="missing tools for an archive")
def test_full_disk_is_told_before_the_download(
    archive: Archive, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(PACKAGE, kernel_members(RELEASE))
    archive.publish()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
    with pytest.raises(HostError, match="100 are free") as caught:
        fetch(archive)
    assert caught.value.errno == errno.ENOSPC
    assert not leftovers(own_cache)


def test_host_without_apt_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="apt-get"):
        kernels.fetch(PACKAGE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written_is_a_host_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMLET_CACHE", "/proc/vmlet")
    with pytest.raises(HostError, match="cannot write") as caught:
        kernels.fetch(PACKAGE)
    assert "VMLET_CACHE" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"package": "-o"},
        {"package": ""},
        {"package": "a b"},
        {"package": "6.1", "max_unpacked": 0},
        {"package": "6.1", "mirror": "file:/x"},
        {"package": "6.1", "keyring": "/x"},
        {"package": "6.1", "components": ["contrib"]},
        {"package": "6.1", "mirror": "file:/x y", "suite": "s"},
        {"package": "6.1", "mirror": "file:/x", "suite": "[trusted=yes]"},
        {"package": "6.1", "mirror": "file:/x", "suite": "s", "keyring": "/nowhere"},
    ],
)
def test_bad_arguments_are_config_errors(options: dict[str, object]) -> None:
    if missing_tools() and "mirror" in options:
        pytest.skip(f"missing tools: {missing_tools()}")
    with pytest.raises(ConfigError):
        kernels.fetch(**options)  # type: ignore[arg-type]


def test_suite_is_looked_for_at_the_mirror_of_its_base() -> None:
    targets = [
        ("http://m.example/debian/", "bookworm", "main"),
        ("http://m.example/debian/", "bookworm-updates", "main"),
        ("http://m.example/security/", "bookworm-security", "main"),
    ]
    main = ["http://m.example/debian/"]
    assert fetching._mirrors_of(targets, "bookworm-backports") == main
    assert fetching._mirrors_of(targets, "trixie") == main
    assert fetching._mirrors_of(targets, "bookworm-security") == ["http://m.example/security/"]
    with pytest.raises(ConfigError, match="no mirror"):
        fetching._mirrors_of([], "trixie")


def test_keyrings_of_the_hosts_sources_are_found(tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("a.gpg", "b.gpg")]
    for key in keys:
        key.touch()
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "x.sources").write_text(f"Types: deb\nSigned-By: {keys[0]}\n")
    (tmp_path / "sources.list").write_text(
        f"deb [arch=amd64 signed-by={keys[1]}] http://m.example s main\n"
        f"# deb [signed-by={tmp_path}/c.gpg] http://m.example s main\n"
    )
    assert apt.host_keyrings(tmp_path) == tuple(str(key) for key in keys)

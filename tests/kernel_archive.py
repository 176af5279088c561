"""A small apt archive with kernel packages, in a directory and signed with a key of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "ar", "gpg", "gpgv")


def missing_tools() -> list[str]:
    """The tools that this machine lacks for making and reading an archive."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def file_member(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """A regular file for a package's tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    return member, content


def kernel_members(release: str, size: int = 4096) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What a kernel package holds."""
    return [
        file_member(f"./boot/vmlinuz-{release}", b"K" * size),
        file_member(f"./boot/config-{release}", b"CONFIG_X=y\n"),
        file_member(f"./lib/modules/{release}/kernel/a.ko", b"M" * 100),
        file_member(f"./usr/share/doc/{release}", b"not wanted"),
    ]


@dataclass
class Archive:
    """The archive's directory and what it lists."""

    path: Path
    suite: str = "stable"
    records: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"file:{self.path}"

    @property
    def keyring(self) -> Path:
        return self.path / "archive.gpg"

    def add(
        self,
        package: str,
        members: list[tuple[tarfile.TarInfo, bytes]],
        *,
        version: str = "1.0-1",
        depends: str = "",
        digest: str | None = None,
    ) -> Path:
        """Puts a package into the pool and the index; ``digest`` is listed in place of the true."""
        control = (
            f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\n"
            + (f"Depends: {depends}\n" if depends else "")
            + "Description: a kernel\n"
        )
        pool = self.path / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        deb = pool / f"{package}_{version}_all.deb"
        parts = {
            "debian-binary": b"2.0\n",
            "control.tar.gz": tar_gz([file_member("./control", control.encode())]),
            "data.tar.gz": tar_gz(members),
        }
        work = pool / "work"
        work.mkdir()
        for name, content in parts.items():
            (work / name).write_bytes(content)
        subprocess.run(["ar", "rc", deb, *(work / name for name in parts)], check=True)
        shutil.rmtree(work)
        true = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.records.append(
            f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\n"
            f"SHA256: {digest or true}\n"
        )
        return deb

    def publish(self, *, signed: bool = True) -> None:
        """Writes the index and signs it."""
        dist = self.path / "dists" / self.suite
        packages = dist / "main" / "binary-all" / "Packages.gz"
        packages.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self.records).encode()
        packages.write_bytes(gzip.compress(text, mtime=0))
        architecture = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()
        own = dist / "main" / f"binary-{architecture}" / "Packages.gz"
        own.parent.mkdir(exist_ok=True)
        shutil.copyfile(packages, own)
        # apt passes over an index whose uncompressed form is not listed too.
        listed = [(path, path.read_bytes()) for path in (packages, own)]
        listed += [(path.with_suffix(""), text) for path, _ in listed]
        hashes = "".join(
            f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.relative_to(dist)}\n"
            for path, data in listed
        )
        release = (
            f"Suite: {self.suite}\nCodename: {self.suite}\nComponents: main\n"
            f"Architectures: {architecture} all\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
            f"SHA256:\n{hashes}"
        )
        (dist / "Release").write_text(release)
        if signed:
            self._sign(dist)

    def _sign(self, dist: Path) -> None:
        home = self.path / "gpg"
        environment = {**os.environ, "GNUPGHOME": str(home)}
        gpg = ["gpg", "--batch", "--quiet", "--yes", "--passphrase", "", "--pinentry-mode=loopback"]
        if not home.exists():
            home.mkdir(mode=0o700)
            make = ["--quick-gen-key", "archive <archive@example.org>", "ed25519", "sign", "never"]
            subprocess.run([*gpg, *make], check=True, env=environment, capture_output=True)
            export = ["--output", str(self.keyring), "--export"]
            subprocess.run([*gpg, *export], check=True, env=environment, capture_output=True)
        sign = ["--output", str(dist / "InRelease"), "--clearsign", str(dist / "Release")]
        subprocess.run([*gpg, *sign], check=True, env=environment, capture_output=True)
        stop = ["gpgconf", "--kill", "gpg-agent"]
        subprocess.run(stop, check=False, env=environment, capture_output=True)


def tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A compressed tar of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()

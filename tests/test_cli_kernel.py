"""``vmlet kernel`` and ``vmlet doctor``: what they print, for people and for programs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import vmlet
from conftest import lacks, limit
from vmlet.cli import doctor
from vmlet.host import Finding

pytestmark = pytest.mark.skipif("VMLET_LAB" in os.environ, reason="programs start slowly there")


def cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``vmlet`` does with these words."""
    return subprocess.run(
        [sys.executable, "-m", "vmlet.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(120),
        env={**os.environ, **environment},
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds one kernel, as fetching leaves it."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def test_a_list_without_kernels_is_empty_for_programs(cache: Path) -> None:
    done = cli("kernel", "list", "--json", VMLET_CACHE=str(cache))
    assert done.returncode == 0
    listed = json.loads(done.stdout)
    assert [one for one in listed if one["origin"] == "cache"] == []


def test_the_list_for_people_has_the_kernels_of_the_list_for_programs(cache: Path) -> None:
    told = cli("kernel", "list", VMLET_CACHE=str(cache))
    listed = json.loads(cli("kernel", "list", "--json", VMLET_CACHE=str(cache)).stdout)
    assert told.returncode == 0
    lines = told.stdout.splitlines()
    if not listed:
        assert lines == ["no kernels are known here; vmlet kernel fetch gets one"]
        return
    assert [line.split()[0] for line in lines] == [one["name"] for one in listed]
    assert [line.split()[-1] for line in lines] == [one["path"] for one in listed]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kernel",), "the following arguments are required"),
        (("kernel", "frobnicate"), "invalid choice: 'frobnicate'"),
        (("kernel", "fetch", "--max-unpacked", "much"), "'much' is not a size such as 512M"),
        (("kernel", "fetch", "--max-unpacked", "-1"), "'-1' is not a size such as 512M"),
        (("kernel", "fetch", "--mirror", "http://archive.test"), "suite"),
        (("kernel", "fetch", "--keyring", "/nowhere.gpg"), "keyring= needs suite="),
        (("kernel", "fetch", "--component", "contrib"), "components= needs suite="),
        (("kernel", "fetch", "--suite", "s", "--keyring", "/nowhere.gpg"), "/nowhere.gpg"),
        (("kernel", "fetch", "-o"), "unrecognized arguments: -o"),
        (("kernel", "fetch", "a b"), "'a b' is not a package's name"),
        (("kernel", "list", "extra"), "unrecognized arguments: extra"),
        (("doctor", "extra"), "unrecognized arguments: extra"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
    ],
)
def test_wrong_usage_is_status_2_with_one_message(
    cache: Path, words: tuple[str, ...], said: str
) -> None:
    done = cli(*words, VMLET_CACHE=str(cache))
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("vmlet: error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_for_programs_is_an_object_too(cache: Path) -> None:
    words = ("kernel", "fetch", "--json", "--mirror", "http://archive.test")
    done = cli(*words, VMLET_CACHE=str(cache))
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["status"] == 2
    assert answer["error"]["message"] in done.stderr
    assert answer["error"]["type"] == "ConfigError"


def test_without_a_command_the_help_is_shown() -> None:
    done = cli()
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("run", "doctor", "kernel"))


@pytest.mark.parametrize(
    "words", [(), ("run",), ("doctor",), ("kernel", "list"), ("kernel", "fetch")]
)
def test_every_command_has_its_help(words: tuple[str, ...]) -> None:
    done = cli(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {' '.join(('vmlet', *words))}")


def archive() -> None:
    """Skips where the host has no apt, or the archive of its sources cannot be reached."""
    if shutil.which("apt-get") is None:
        lacks("network", "this host has no apt")
    command = ["apt-get", "indextargets", "--format", "$(SITE)"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    sites = [urlsplit(line) for line in said.splitlines() if line.startswith("http")]
    if not sites:
        lacks("network", "apt has no archive that is reached by http")
    if any(os.environ.get(name) for name in ("http_proxy", "https_proxy")):
        return
    name, port = sites[0].hostname, sites[0].port or 80
    try:
        socket.create_connection((str(name), port), limit(5)).close()
    except OSError as error:
        lacks("network", f"{name} cannot be reached: {error}")


def test_a_kernel_is_refused_where_too_large_else_fetched_listed_and_found_again(
    cache: Path,
) -> None:
    archive()
    words = ("kernel", "fetch", "6.1-cloud")
    refused = cli(*words, "--max-unpacked", "1M", VMLET_CACHE=str(cache))
    assert refused.returncode == 2
    assert "vmlet: error: " in refused.stderr
    assert "--max-unpacked" in refused.stderr
    assert not list(cache.rglob("vmlinuz*"))
    first = cli(*words, VMLET_CACHE=str(cache))
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.strip())
    assert path.is_file()
    assert path.is_relative_to(cache)
    assert "vmlet: " in first.stderr
    found = json.loads(cli("kernel", "list", "--json", VMLET_CACHE=str(cache)).stdout)
    (kernel,) = [one for one in found if one["origin"] == "cache"]
    assert (kernel["path"], kernel["flavour"]) == (str(path), "cloud")
    again = cli("kernel", "fetch", kernel["package"], "--json", VMLET_CACHE=str(cache))
    assert json.loads(again.stdout) == kernel


def test_doctor_names_each_finding_and_the_engine_for_people_and_programs() -> None:
    told, asked = cli("doctor"), cli("doctor", "--json")
    answer = json.loads(asked.stdout)
    assert told.returncode == asked.returncode == (0 if answer["engine"] == "kvm" else 1)
    assert f"engine: {answer['engine']} (" in told.stdout
    assert answer["findings"]
    for finding in answer["findings"]:
        assert finding["state"] in ("ok", "no", "warning", "unknown")
        assert any(
            line.startswith(finding["state"]) and finding["topic"] in line
            for line in told.stdout.splitlines()
        )
        assert finding["state"] != "no" or finding["cause"]


NATIVE = {"usable": True, "runs_kernels": True, "detail": "it ran", "remedy": None}
LIMITED = {"usable": True, "runs_kernels": False, "detail": "interpreted", "remedy": "another host"}
ABSENT = {"usable": False, "runs_kernels": False, "detail": "ENOENT", "remedy": "load the module"}


@pytest.mark.parametrize(
    ("probe", "engine", "said", "remedy"),
    [
        (NATIVE, "kvm", "it ran", None),
        (LIMITED, "soft", "KVM runs small guests but no kernel: interpreted", "another host"),
        (ABSENT, "soft", "KVM cannot be used: ENOENT", "load the module"),
    ],
)
def test_the_verdict_follows_from_the_guest_that_ran(
    probe: dict[str, object], engine: str, said: str, remedy: str | None
) -> None:
    verdict = doctor.judge(probe)
    assert (verdict.engine, verdict.remedy) == (engine, remedy)
    assert said in verdict.reason
    assert doctor.render_verdict(verdict)[0].startswith(f"engine: {engine} (")
    assert len(doctor.render_verdict(verdict)) == (1 if remedy is None else 2)


def test_findings_are_a_table_with_cause_and_remedy_below() -> None:
    findings = [
        Finding(topic="kvm", state="ok", detail="API 12", cause=None, remedy=None),
        Finding(topic="iommu", state="no", detail="none", cause="no table", remedy="turn it on"),
    ]
    assert doctor.render(findings) == [
        "ok       kvm    API 12",
        "no       iommu  none",
        "                cause: no table",
        "                remedy: turn it on",
    ]


def test_models_say_which_engine_carries_them_and_what_the_others_lack() -> None:
    fits: dict[str, list[str]] = {"missing": [], "unmasked": []}
    models = {
        "x86-64-v1": {"kvm": fits, "soft": fits},
        "x86-64-v2": {"kvm": fits, "soft": {"missing": ["pni", "popcnt"], "unmasked": []}},
    }
    assert doctor.render_models(models) == [
        "cpu x86-64-v1: kvm, soft",
        "cpu x86-64-v2: kvm; soft lacks pni, popcnt",
    ]
    shown = {"missing": [], "unmasked": ["avx"]}
    assert doctor.render_models({"x86-64-v1": {"kvm": shown, "soft": fits}}) == [
        "cpu models: not on kvm, whose guests see the processor's avx",
        "cpu x86-64-v1: soft",
    ]


def test_the_version_is_the_packages() -> None:
    assert cli("--version").stdout == f"vmlet {vmlet.__version__}\n"

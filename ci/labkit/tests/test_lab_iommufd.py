"""L1's kernel with iommufd: what is taken of the source package, and how it is built."""

from __future__ import annotations

import pytest

from labkit import iommufd
from labkit.apt import Apt
from labkit.errors import LabError

_TREE = """\
#include <linux/interval_tree.h>
INTERVAL_TREE_DEFINE(struct interval_tree_node, rb)
EXPORT_SYMBOL_GPL(interval_tree_insert);

#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER
void interval_tree_span_iter_first(void) {}
EXPORT_SYMBOL_GPL(interval_tree_span_iter_first);
#endif
"""


def test_the_iterator_is_taken_alone_and_without_exports() -> None:
    text = iommufd.span(_TREE)
    assert "void interval_tree_span_iter_first(void) {}\n#endif" in text
    assert text.index("interval_tree_generic.h") < text.index("#ifdef")
    assert "EXPORT_SYMBOL" not in text
    assert "INTERVAL_TREE_DEFINE" not in text


def test_a_source_without_the_iterator_is_an_error() -> None:
    with pytest.raises(LabError, match="SPAN_ITER"):
        iommufd.span("nothing")


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("drivers/vfio/vfio_main.c", True),
        ("drivers/vfio/pci/vfio_pci_priv.h", True),
        ("drivers/vfio/pci/mlx5/main.c", False),
        ("drivers/vfio/Makefile", False),
        ("drivers/iommu/iommufd/pages.c", True),
        ("drivers/iommu/iommu-priv.h", True),
        ("drivers/iommu/iommu.c", False),
        ("lib/interval_tree.c", True),
    ],
)
def test_of_the_source_only_what_the_modules_need_is_taken(name: str, taken: bool) -> None:
    assert (iommufd._TAKEN.fullmatch(f"linux-source-6.12/{name}") is not None) == taken


def test_the_build_is_told_of_each_module_and_its_objects() -> None:
    text = iommufd._FOLDERS[1].kbuild()
    assert "-DCONFIG_VFIO_DEVICE_CDEV=1" in text
    assert "\nobj-m := vfio.o vfio_iommu_type1.o\n" in text
    assert "\nvfio-y := vfio_main.o device_cdev.o " in text
    assert "vfio_iommu_type1-y" not in text


def test_kernel_headers_and_source_are_of_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["linux-image-6.12.117+deb12-amd64", "linux-image-6.12.117+deb12-amd64-unsigned"]
    monkeypatch.setattr(Apt, "__init__", lambda _: None)
    monkeypatch.setattr(Apt, "of_version", lambda *_: found)
    assert iommufd._names("6.12.117-1") == (
        "linux-image-6.12.117+deb12-amd64",
        "linux-headers-6.12.117+deb12-amd64",
        "linux-headers-6.12.117+deb12-common",
        "linux-kbuild-6.12.117+deb12",
        "linux-source-6.12",
    )
    found.clear()
    with pytest.raises(LabError, match=r"6\.12\.117-1, and no kernel has"):
        iommufd._names("6.12.117-1")

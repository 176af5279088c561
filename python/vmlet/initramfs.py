"""Initramfs images."""

from __future__ import annotations

from vmlet import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike


def build_initramfs(
    directory: str | PathLike[str] | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
    links: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
    modules_directory: str | PathLike[str] | None = None,
) -> bytes:
    """An initramfs image for a Linux guest.

    What lies in ``directory`` comes first, then ``files`` (name to content; all executable), then
    symbolic ``links`` (name to target). ``modules`` are kernel modules by name, taken with what
    they depend on from ``modules_directory`` (``/lib/modules/VERSION``), unpacked, and stored as
    ``modules/NN-NAME.ko`` in the order they are to be loaded. The console device is added.

    >>> image = build_initramfs(files={"init": b"#!/bin/sh\\n"})
    >>> image[:6], b"init" in image
    (b'070701', True)
    """
    return _core.build_initramfs(
        directory=directory,
        files=[(name, 0o755, bytes(data)) for name, data in (files or {}).items()],
        links=list((links or {}).items()),
        modules=list(modules),
        modules_directory=modules_directory,
    )

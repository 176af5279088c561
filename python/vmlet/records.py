"""What a recorded VM was made of."""

from __future__ import annotations

from vmlet._core import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Images:
    """The bytes that a VM is made of."""

    __slots__ = ("initramfs", "kernel", "modules")

    def __init__(self, *, kernel: bytes, initramfs: bytes | None, modules: list[bytes]) -> None:
        self.kernel = kernel
        self.initramfs = initramfs
        self.modules = modules


def identity_of(
    images: Images, settings: Mapping[str, object]
) -> Callable[[], list[tuple[str, str]]]:
    """Names and values that a record and its replay must have in common, made when asked for."""

    import functools

    @functools.cache
    def identity() -> list[tuple[str, str]]:
        digests = {"vmlet": __version__, "kernel": _digest(images.kernel)}
        if images.initramfs is not None:
            digests["initramfs"] = _digest(images.initramfs)
        for number, module in enumerate(images.modules):
            digests[f"module {number}"] = _digest(module)
        return [*digests.items(), *((name, str(value)) for name, value in settings.items())]

    return identity


def _digest(image: bytes) -> str:
    import hashlib

    return f"sha256 {hashlib.sha256(image).hexdigest()}"

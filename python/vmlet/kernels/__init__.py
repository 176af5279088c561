"""Kernels to boot: those of the host, and packages of a distribution fetched without root."""

from vmlet.kernels.cache import cache_directory
from vmlet.kernels.catalogue import find_kernel, list_kernels
from vmlet.kernels.fetching import fetch
from vmlet.kernels.kernel import Kernel

__all__ = ["Kernel", "cache_directory", "fetch", "find_kernel", "list_kernels"]

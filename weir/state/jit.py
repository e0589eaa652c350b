"""The one way this project compiles a numeric loop: cached on disk, and without the interpreter's lock."""

from collections.abc import Callable
from typing import Any, cast

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled by numba at its first call, cached beside its source, run with the lock released.

    The cache is keyed by the calling module's own file: after changing a kernel that another module's kernel
    calls, delete `__pycache__`.
    """
    return cast(Callable[..., Any], njit(cache=True, nogil=True)(function))


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A piece of a kernel, compiled into each that calls it: to hand an array over costs seven words."""
    return cast(Callable[..., Any], njit(cache=True, nogil=True, forceinline=True)(function))

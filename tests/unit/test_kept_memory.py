"""What is freed stays with the process, where the C library can do that."""

import platform
import subprocess
import sys


def test_freed_memory_is_kept_by_glibc() -> None:
    """In a process of its own: it holds for all of it."""
    script = "from weir.memory import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")

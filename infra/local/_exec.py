"""`_exec.py PARENT COMMAND...`: become COMMAND, which the kernel kills when PARENT dies. A script."""

import os
import sys

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def main(parent: int, command: list[str]) -> None:
    """Never comes back, unless the parent is gone already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        # It may have died before the kernel was asked.
        if os.getppid() != parent:
            sys.exit(1)
    try:
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - to become the command is the purpose
    except OSError as error:
        sys.exit(f"error: cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""What a process that hangs is doing: SIGUSR1 makes it write its threads' and tasks' stacks to stderr."""

import asyncio
import faulthandler
import signal
import sys
import threading


def install() -> None:
    """Listen for the signal; also while no Python code runs, for the threads."""
    signal.signal(signal.SIGUSR1, lambda number, frame: _write_tasks())
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def _write_tasks() -> None:
    # Not `asyncio.all_tasks`: that is of one loop, and Faust's consumer has another.
    tasks = [task for task in list(asyncio.tasks._all_tasks) if not task.done()]  # type: ignore[attr-defined]
    print(f"{len(tasks)} tasks, {threading.active_count()} threads", file=sys.stderr)
    for task in tasks:
        task.print_stack(limit=12, file=sys.stderr)
    sys.stderr.flush()

"""Running a `BatchApp` as a process: Weir's logs, one line for what ended it, an exit code that says so."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import faust

from weir.errors import ExitCode, WeirError
from weir.memory import keep_freed_memory
from weir.streams.app import BatchApp

SWITCH_INTERVAL_S = 0.0005


class _Worker(faust.Worker):
    """Faust's worker without its banner, its spinner and its own set-up of logging."""

    def __init__(self, app: BatchApp, **options: Any) -> None:
        super().__init__(app, redirect_stdouts=False, loop=asyncio.new_event_loop(), **options)
        self.spinner = None

    def _setup_logging(self) -> None:
        # weir.obs.log has set the root logger up; mode would replace its handlers.
        pass


def run_worker(app: BatchApp) -> int:
    """Run the app until it is told to stop.

    Returns: 0, or the exit code of the error that ended it (`app.fatal`), which was said in one line.
    """
    Path(str(app.conf.datadir)).mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    # The consumer's thread waits this long for a busy main thread, several times a fetch: 5 ms by default.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    worker = _Worker(app)
    asyncio.set_event_loop(worker.loop)
    status: int | str | None = ExitCode.OK
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        status = end.code
    if app.fatal is not None:
        print(f"{app.conf.id}: {app.fatal}", file=sys.stderr)  # noqa: T201 - the last words of a process
        return app.fatal.exit_code if isinstance(app.fatal, WeirError) else ExitCode.FAILED
    return status if isinstance(status, int) else ExitCode.OK

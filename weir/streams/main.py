"""What `python -m services.NAME` does for a stream processing service."""

import sys
from collections.abc import Callable

import uvloop

from weir.config import LogSettings
from weir.errors import WeirError
from weir.obs.log import configure
from weir.streams.app import BatchApp
from weir.streams.worker import run_worker


def main(service: str, create_app: Callable[[], BatchApp]) -> int:
    """Run one worker until it is told to stop; 0, or the exit code of what ended it.

    With arguments: Faust's own command line.
    """
    try:
        configure(LogSettings.load(), service=service)
        uvloop.install()
        app = create_app()
    except WeirError as error:
        print(f"{service}: {error}", file=sys.stderr)  # noqa: T201 - the last words of a process
        return error.exit_code
    if len(sys.argv) > 1:
        app.main()
    return run_worker(app)

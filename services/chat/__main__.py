"""`python -m services.chat`: one chat worker. With arguments: Faust's own command line."""

import sys

import uvloop

from services.chat.app import create_app
from weir.config import LogSettings
from weir.errors import WeirError
from weir.obs.log import configure
from weir.streams import run_worker


def main() -> int:
    """Run the worker until it is told to stop; 0, or the exit code of what ended it."""
    try:
        configure(LogSettings.load(), service="chat")
        uvloop.install()
        app = create_app()
    except WeirError as error:
        print(f"chat: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    if len(sys.argv) > 1:
        app.main()
    return run_worker(app)


if __name__ == "__main__":
    sys.exit(main())

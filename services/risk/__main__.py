"""`python -m services.risk [worker ...]`: Faust's command line of the risk service; `worker` by default."""

import sys

import uvloop

from services.risk.app import create_app
from weir.config import LogSettings
from weir.errors import ExitCode, WeirError
from weir.obs.log import configure


def main() -> int:
    """Run the worker until it is told to stop; 0, or the exit code of what ended it."""
    try:
        settings = LogSettings.load()
        configure(settings, service="risk")
        uvloop.install()
        app = create_app()
    except WeirError as error:
        print(f"risk: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    if len(sys.argv) == 1:
        sys.argv += ["worker", "--loglevel", "warn", "--without-web"]
    try:
        app.main()
    except WeirError:
        pass  # reported below
    except SystemExit as end:
        if app.fatal is None:
            return int(end.code or 0) if isinstance(end.code, int) or end.code is None else ExitCode.FAILED
    if app.fatal is not None:
        print(f"risk: {app.fatal}", file=sys.stderr)  # noqa: T201
        return app.fatal.exit_code if isinstance(app.fatal, WeirError) else ExitCode.FAILED
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())

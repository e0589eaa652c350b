"""`python -m services.ledger`: the ledger, by the settings in force."""

import asyncio
import sys

from services.ledger.app import run
from services.ledger.settings import LedgerSettings
from weir.config import LogSettings
from weir.errors import WeirError


def main() -> int:
    """The exit code: 0 after a signal, else the error's own."""
    try:
        asyncio.run(run(LedgerSettings.load(), LogSettings.load()))
    except WeirError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m services.risk`: one risk worker. With arguments: Faust's own command line."""

import sys

from services.risk.app import create_app
from weir.streams.main import main

if __name__ == "__main__":
    sys.exit(main("risk", create_app))

"""`python -m services.chat`: one chat worker. With arguments: Faust's own command line."""

import sys

from services.chat.app import create_app
from weir.streams.main import main

if __name__ == "__main__":
    sys.exit(main("chat", create_app))

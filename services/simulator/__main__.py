"""`python -m services.simulator` is `weir simulate`."""

from services.simulator.cli import app

if __name__ == "__main__":
    app()

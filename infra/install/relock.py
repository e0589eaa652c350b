"""Pin the dependencies anew: `make lock`. Hashes for every platform, and no registry's address in a lock."""

import sys
from collections.abc import Sequence

from infra.install.packages import get_uv
from infra.install.progress import Reporter
from weir.errors import WeirError

_OPTIONS = (
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-header",
)
# Each lock and what it is made from.
_LOCKS = {
    "dev": ("pyproject.toml", "--all-extras"),
    "boot": ("requirements/boot.in",),
    "java": ("requirements/java.in",),
    "models": ("requirements/models.in", "--no-deps"),
    "triton": ("requirements/triton.in", "--overrides=requirements/triton-overrides.txt"),
}


def main(options: Sequence[str]) -> int:
    """Write every lock; `options` go to uv (`--upgrade`, `--upgrade-package NAME`)."""
    reporter = Reporter()
    try:
        uv = get_uv(reporter)
        for name, sources in _LOCKS.items():
            lock = f"requirements/{name}.lock"
            uv.run("pip", "compile", *_OPTIONS, *options, *sources, "--output-file", lock, step=lock)
            reporter.line(f"{lock} is written.")
    except WeirError as error:
        sys.stderr.write(f"lock: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

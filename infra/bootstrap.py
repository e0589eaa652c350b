#!/usr/bin/env python3
"""Set up everything that Weir needs, in its own folder: `python3 infra/bootstrap.py`.

Runs on a bare Python with the standard library alone. What is in place is skipped within milliseconds; an
interrupted run is safe to repeat, and two at once wait for one another. Nothing outside the checkout is
written, save the installer's own download cache in the user's home.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python must be told so
    sys.exit(
        f"Weir needs Python 3.11 or newer; this is {sys.version.split()[0]}. Run it with another Python."
    )
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.install import stamp
from infra.install.progress import Reporter, seconds
from infra.install.step import Step
from infra.install.steps import ALL, EMBEDDED_STACK
from infra.local import layout
from weir.errors import ExitCode, MissingPart, WeirError

_LOCK = layout.HOME / "setup.lock"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; the exit code."""
    options = _parse(arguments)
    reporter = Reporter()
    steps = _chosen(options)
    began = time.monotonic()
    try:
        if options.offline:
            return _check(steps, reporter)
        if all(step.is_done() for step in steps):
            _everything_in_place(reporter, began, quiet=options.quiet)
            return ExitCode.OK
        with stamp.only_one(_LOCK, reporter):
            # What an interrupted run left; nobody else works there while we hold the lock.
            shutil.rmtree(layout.SCRATCH, ignore_errors=True)
            for step in steps:
                _do(step, reporter)
            shutil.rmtree(layout.SCRATCH, ignore_errors=True)
        reporter.line(f"Set up in {seconds(time.monotonic() - began)}. Try `make help`, or `make demo`.")
    except WeirError as error:
        return _fail(f"{error}", error.exit_code)
    except OSError as error:
        return _fail(f"{error}. Check the disk and its permissions, then run this again.", ExitCode.FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted. Run it again to go on where it stopped.", ExitCode.INTERRUPTED)
    return ExitCode.OK


def _fail(why: str, code: ExitCode) -> ExitCode:
    sys.stdout.flush()
    sys.stderr.write(f"setup: {why}\n")
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bootstrap.py",
        description="Set up what Weir needs, in the checkout's own folder.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 something is missing on this machine, "
        "4 no network, 6 a download is not what its hash says, 130 interrupted.",
    )
    parser.add_argument(
        "--only",
        choices=[step.name for step in ALL],
        action="append",
        metavar="STEP",
        help=f"only this step ({', '.join(step.name for step in ALL)}); may be given again",
    )
    parser.add_argument("--all", action="store_true", help="what the tests need too: MariaDB and promtool")
    parser.add_argument(
        "--offline", action="store_true", help="change nothing, tell what is missing; 3 if something is"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing when everything is in place")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Step]:
    if options.only:
        return [step for step in ALL if step.name in options.only]
    return list(ALL if options.all else EMBEDDED_STACK)


def _check(steps: Sequence[Step], reporter: Reporter) -> int:
    missing = [step for step in steps if not step.is_done()]
    for step in steps:
        reporter.line(f"  {step.name:8} {'missing or out of date' if step in missing else 'in place'}")
    if any(not step.optional for step in missing):
        names = ", ".join(step.name for step in missing)
        raise MissingPart(f"not in place: {names}. Run `make setup` with a network once.")
    return ExitCode.OK


def _everything_in_place(reporter: Reporter, began: float, *, quiet: bool) -> None:
    if not quiet:
        reporter.line(f"Everything is in place ({seconds(time.monotonic() - began)}).")


def _do(step: Step, reporter: Reporter) -> None:
    if step.is_done():
        return
    began = time.monotonic()
    reporter.line(f"{step.what} ...")
    _require_space(step)
    try:
        result = step.make(reporter)
    except WeirError as error:
        if not step.optional:
            raise
        reporter.line(f"  left out: {error}")
        return
    stamp.write(step.stamp_path, step.made_from())
    reporter.line(f"  {step.name}: {result} ({seconds(time.monotonic() - began)})")


def _require_space(step: Step) -> None:
    free_mb = shutil.disk_usage(layout.ROOT).free // 1_000_000
    if free_mb < step.needs_mb:
        raise MissingPart(
            f"{step.name} needs {step.needs_mb} MB on the disk of {layout.ROOT}, which has {free_mb} MB "
            "free. Free some, or move the checkout."
        )


if __name__ == "__main__":
    sys.exit(main())

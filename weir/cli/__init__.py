"""The `weir` command: one line for every error, and an exit code that says what kind it was.

Nothing heavy is imported here, so that `weir --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version

from weir.errors import ExitCode, WeirError

# What is wrong with the machine rather than with Weir: one line, and no report of a crash.
_MACHINE_ERRORS = frozenset({"ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EMFILE"})


def main() -> int:
    """Run the command line of this process; the exit code is one of `weir.errors.ExitCode`."""
    # gRPC's core writes lines of its own to stderr; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A shell starts background jobs deaf to SIGINT; who sends it all the same means it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseExceptionGroup as group:
        return _failed(next(_leaves(group)))
    except Exception as error:  # noqa: BLE001  (the edge: whatever it is, the person gets one line)
        return _failed(error)


def _run() -> int:
    import typer

    from weir.cli._root import root

    try:
        code = root().main(prog_name="weir", standalone_mode=False)
    except typer.Abort:
        return ExitCode.FAILED
    except Exception as error:
        # What is wrong with the command line itself; the class is Typer's or click's, by Typer's version.
        if isinstance(error, typer.BadParameter.__mro__[2]):
            return _usage(error)
        raise
    return code if isinstance(code, int) else ExitCode.OK


def _usage(error: BaseException) -> int:
    context = getattr(error, "ctx", None)
    message = getattr(error, "format_message", str)()
    if type(error).__name__ == "NoArgsIsHelpError":
        # The error is the help itself; with Rich it is on the screen already, and the text is empty.
        print(message) if message.strip() else None  # noqa: T201
        return ExitCode.USAGE
    hint = f" Try `{context.command_path} --help`." if context is not None else ""
    _say(f"{message.splitlines()[0] if message else type(error).__name__}{hint}")
    return ExitCode.USAGE


def _failed(error: BaseException) -> int:
    if os.environ.get("WEIR_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if isinstance(error, WeirError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, OSError) and _machine_error(error):
        _say(f"{error.filename or 'this machine'}: {error.strerror}.")
        return ExitCode.FAILED
    where = _report(error)
    _say(f"unexpected {type(error).__name__}: please report it with {where}. WEIR_DEBUG=1 shows it here.")
    return ExitCode.FAILED


def _machine_error(error: OSError) -> bool:
    import errno

    return errno.errorcode.get(error.errno or 0) in _MACHINE_ERRORS


def _report(error: BaseException) -> str:
    """Write the traceback to a file only its owner reads; where it lies, or why there is none."""
    import tempfile
    import time
    import traceback
    from pathlib import Path

    logs = Path(".weir/logs")
    folder = logs if logs.is_dir() else Path(tempfile.gettempdir())
    path = folder / f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.txt"
    head = f"weir {version('weir')}, Python {sys.version}, {sys.platform}\ncommand: {sys.argv[1:2]}\n\n"
    try:
        with open(path, "x", encoding="utf-8", opener=_private) as file:
            file.write(head + "".join(traceback.format_exception(error)))
    except OSError as reason:
        return f"WEIR_DEBUG=1 (no report could be written to {folder}: {reason.strerror})"
    return str(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors inside, those that were raised on purpose first."""
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return iter(sorted(flat, key=lambda error: not isinstance(error, WeirError)))


def _say(line: str) -> None:
    print(f"weir: {line}", file=sys.stderr)  # noqa: T201  (the command line speaks on stderr)

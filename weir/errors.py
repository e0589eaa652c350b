"""The errors a person or a caller of Weir can meet: each says what, where and what to do."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command line returns to the shell; documented in `docs/reference/exit-codes.md`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    UNAVAILABLE = 4
    DENIED = 5
    INTEGRITY = 6
    CONFIG = 7
    INTERRUPTED = 130


class WeirError(Exception):
    """Base of every error that Weir raises on purpose; its text is one line, fit to show to a person.

    `retriable` says whether the same call may succeed later without anyone changing anything.
    """

    retriable = False
    exit_code = ExitCode.FAILED


class ConfigError(WeirError):
    """A setting is missing, malformed or out of range."""

    exit_code = ExitCode.CONFIG


class MissingPart(WeirError):
    """Something this machine needs is not installed, or a file is not there."""

    exit_code = ExitCode.MISSING


class NeighbourUnavailable(WeirError):
    """A neighbour (Kafka, Triton, key service, database) gave no answer; trying again may help."""

    retriable = True
    exit_code = ExitCode.UNAVAILABLE


class AccessDenied(WeirError):
    """The caller's role may not do this; asking again does not help."""

    exit_code = ExitCode.DENIED


class IntegrityError(WeirError):
    """Bytes are not what they claim to be: a checksum, a tag or a signature does not match."""

    exit_code = ExitCode.INTEGRITY


class BadInput(WeirError):
    """A record or an argument from outside breaks its contract.

    `reason` is one of a closed set of words, fit for a metric's label; the text never repeats the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")

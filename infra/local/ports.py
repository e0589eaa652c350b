"""Free TCP ports on the loopback interface."""

import socket

from weir.errors import ExitCode, WeirError

LOOPBACK = "127.0.0.1"


class PortTaken(WeirError):
    """Another process listens where a server was told to listen."""

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, port: int, server: str) -> None:
        self.port, self.server = port, server
        super().__init__(
            f"{server}: port {port} on {LOOPBACK} is taken by another process. "
            f"Stop that process, or give {server} another port (0 chooses a free one)."
        )


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on now.

    All are held open until the last is known, so that no two are the same.
    """
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(listener)
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in held]
    finally:
        for listener in held:
            listener.close()


def free_port() -> int:
    """One port that nobody listens on now."""
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As servers do: a port whose last connections are only in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(port: int, server: str) -> None:
    """Check, before a start, that the port can be had.

    Raises:
        PortTaken: somebody listens there.
    """
    if not is_free(port):
        raise PortTaken(port, server)


def accepts(port: int, timeout_s: float = 0.5) -> bool:
    """Whether something takes connections on this port of the loopback interface."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False

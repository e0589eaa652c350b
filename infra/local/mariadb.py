"""A real MariaDB server, rootless and bound to the loopback interface: the ledger's other database."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from infra.local import layout
from infra.local.ports import LOOPBACK, free_port, require_free
from infra.local.server import LocalServer
from weir.errors import MissingPart, WeirError

DATABASE = "weir"
USER = "weir"

# The order of mariadb-install-db.
_SYSTEM_TABLES = (
    "mariadb_system_tables.sql",
    "mariadb_performance_tables.sql",
    "mariadb_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "mariadb_sys_schema.sql",
)
_MACHINE_PROGRAMS = ("mariadbd", "/usr/sbin/mariadbd", "mysqld", "/usr/sbin/mysqld")
_MACHINE_SHARES = ("share/mysql", "share/mariadb", "share")


@dataclass(frozen=True, slots=True)
class MariaDb:
    """One installation: the server program, its messages and system tables, and where it was found."""

    program: Path
    share: Path
    source: str


def find_mariadb() -> MariaDb:
    """The one that `make setup` brought if its program runs on this machine, else the machine's own.

    Raises:
        MissingPart: neither; the text says what to do.
    """
    seen = []
    for found in _candidates():
        trouble = _trouble(found)
        if trouble is None:
            return found
        seen.append(f"{found.program}: {trouble}")
    why = f" ({'; '.join(seen)})" if seen else ""
    raise MissingPart(
        f"No MariaDB server runs on this machine{why}. Run `python3 infra/bootstrap.py --only mariadb`, "
        "or install your system's mariadb-server package."
    )


def _candidates() -> list[MariaDb]:
    found = []
    bundled = layout.MARIADB / "bin" / "mariadbd"
    if bundled.is_file():
        found.append(MariaDb(bundled, layout.MARIADB / "share", "setup"))
    for name in _MACHINE_PROGRAMS:
        if program := shutil.which(name):
            base = Path(program).resolve().parents[1]
            for share in _MACHINE_SHARES:
                if (base / share / _SYSTEM_TABLES[0]).is_file():
                    found.append(MariaDb(Path(program), base / share, "machine"))
    return found


def _trouble(found: MariaDb) -> str | None:
    """Why this program does not run here (a library is missing, another architecture), or None."""
    try:
        done = subprocess.run(
            [found.program, "--no-defaults", "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return None if "MariaDB" in done.stdout else "not MariaDB"


@dataclass(frozen=True, slots=True)
class MariaDbTls:
    """TLS, required of every caller; files are PEM. With `client_ca` a caller's certificate must be of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def arguments(self) -> list[str]:
        """The server's flags."""
        flags = [
            f"--ssl-cert={self.certificate}",
            f"--ssl-key={self.key}",
            "--require-secure-transport=ON",
        ]
        return [*flags, f"--ssl-ca={self.client_ca}"] if self.client_ca else flags


class MariaDbServer(LocalServer):
    """One MariaDB with one database and one user, over TCP on the loopback interface.

    Args:
        data_dir: tables and the user's password (readable by its owner alone); made at the first start.
        log_path: what the server prints.
        port: 0 chooses a free one.
        tls: None leaves the connection in the clear. With its `client_ca` the user needs a certificate too.
    """

    name: ClassVar[str] = "mariadb"

    def __init__(
        self, data_dir: Path, log_path: Path, *, port: int = 0, tls: MariaDbTls | None = None
    ) -> None:
        super().__init__(log_path)
        self.data_dir = data_dir
        self.tls = tls
        self.port = port or free_port()

    @property
    def _password_path(self) -> Path:
        return self.data_dir / "password"

    def url(self, driver: str = "mysql+asyncmy") -> str:
        """A SQLAlchemy URL of the database, with the password; for settings, never for a log."""
        password = self._password_path.read_text(encoding="ascii")
        return f"{driver}://{USER}:{password}@{LOOPBACK}:{self.port}/{DATABASE}?charset=utf8mb4"

    def prepare(self) -> None:
        """Check the port and, at the first start, make the system tables, the database and its user.

        Raises:
            PortTaken, MissingPart: say what to do.
            WeirError: the system tables cannot be made.
        """
        require_free(self.port, self.name)
        if not self._password_path.is_file():
            self._install(find_mariadb())

    def _install(self, mariadb: MariaDb) -> None:
        tables = self.data_dir / "data"
        shutil.rmtree(tables, ignore_errors=True)  # what an interrupted start left
        tables.mkdir(parents=True)
        password = secrets.token_urlsafe(24)
        mutual = " REQUIRE X509" if self.tls and self.tls.client_ca else ""
        statements = [
            "CREATE DATABASE IF NOT EXISTS mysql;",
            "USE mysql;",
            "SET @auth_root_socket=NULL;",
            *(
                (mariadb.share / name).read_text(encoding="utf-8")
                for name in _SYSTEM_TABLES
                if (mariadb.share / name).is_file()
            ),
            # The server starts this way without its tables of rights; they are there now.
            "FLUSH PRIVILEGES;",
            f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4;",
            f"CREATE USER '{USER}'@'{LOOPBACK}' IDENTIFIED BY '{password}'{mutual};",
            f"GRANT ALL ON *.* TO '{USER}'@'{LOOPBACK}';",
            "DROP USER IF EXISTS root@localhost;",
            "",
        ]
        done = subprocess.run(
            [*self._server(mariadb), "--bootstrap"],
            input="\n".join(statements),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no message"]
            raise WeirError(f"mariadb: cannot make its system tables in {tables}: {errors[0][:300]}")
        descriptor = os.open(self._password_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(password)

    def _server(self, mariadb: MariaDb) -> list[str]:
        as_root = [f"--user={getpass.getuser()}"] if os.geteuid() == 0 else []  # as root it asks for a name
        return [
            str(mariadb.program),
            "--no-defaults",
            f"--datadir={self.data_dir / 'data'}",
            f"--lc-messages-dir={mariadb.share}",
            f"--character-sets-dir={mariadb.share / 'charsets'}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            *as_root,
        ]

    def command(self) -> list[str]:
        """The server's command line."""
        return [
            *self._server(find_mariadb()),
            f"--bind-address={LOOPBACK}",
            f"--port={self.port}",
            # A path below a deep folder would be too long for a socket's name.
            "--socket=",
            f"--pid-file={self.data_dir / 'mariadb.pid'}",
            "--skip-name-resolve",
            "--skip-log-bin",
            *(self.tls.arguments() if self.tls else []),
        ]

    def probe(self) -> str | None:
        """None once the server greets a caller (a handshake, not an error packet)."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as connection:
                connection.settimeout(1.0)
                greeting = connection.recv(5)
        except OSError:
            return f"no answer on port {self.port}"
        # Three bytes of length, one of sequence, then the protocol's version; 0xff would be an error.
        return None if len(greeting) == 5 and greeting[4] == 10 else "no greeting"

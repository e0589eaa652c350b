"""The set-up's pure parts: lists of jars, mirrors, stamps, indexes, and what an installer's words mean."""

import hashlib
import http.server
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.install import jars, packages, stamp, steps, triton_layout
from infra.install.jars import Jar, Repository
from infra.install.progress import Meter, Reporter, progress, seconds
from infra.local import layout, tools
from weir.errors import ConfigError, ExitCode, IntegrityError, MissingPart, NeighbourUnavailable, WeirError

HASH = "a" * 64


def test_every_list_of_jars_in_the_repository_is_well_formed() -> None:
    for lock in layout.REQUIREMENTS.glob("*-jars.lock"):
        found = jars.read_jar_lock(lock)
        assert found
        assert len({jar.file_name for jar in found}) == len(found)


def test_a_jar_knows_its_place_in_a_repository(tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(f"# why\n\norg.example.deep:thing_2.13:1.0-rc1 sha256:{HASH} 12\n")
    (jar,) = jars.read_jar_lock(lock)
    assert jar == Jar("org.example.deep", "thing_2.13", "1.0-rc1", HASH, 12)
    assert jar.path == "org/example/deep/thing_2.13/1.0-rc1/thing_2.13-1.0-rc1.jar"


@pytest.mark.parametrize(
    "line",
    [
        f"org.example:thing sha256:{HASH} 12",
        f"org.example:thing:1 sha256:{HASH[1:]} 12",
        f"org.example:thing:1 sha256:{HASH}",
        f"org.example:../../thing:1 sha256:{HASH} 12",
    ],
)
def test_a_malformed_line_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(f"# first\n{line}\n")
    with pytest.raises(ConfigError, match=r"some.lock line 2: "):
        jars.read_jar_lock(lock)


def test_no_lock_names_a_registry() -> None:
    for lock in layout.REQUIREMENTS.iterdir():
        assert "://" not in lock.read_text(), lock


def _settings(tmp_path: Path, mirrors: str, servers: str = "", namespace: bool = True) -> Path:
    path = tmp_path / "settings.xml"
    xmlns = ' xmlns="http://maven.apache.org/SETTINGS/1.2.0"' if namespace else ""
    path.write_text(f"<settings{xmlns}><mirrors>{mirrors}</mirrors><servers>{servers}</servers></settings>")
    return path


def _mirror(name: str, of: str) -> str:
    return f"<mirror><id>{name}</id><url>http://{name}.example/maven/</url><mirrorOf>{of}</mirrorOf></mirror>"


@pytest.mark.parametrize("of", ["central", "*", "external:*", "other, central", "*,!other"])
@pytest.mark.parametrize("namespace", [True, False])
def test_a_mirror_of_central_is_used(of: str, namespace: bool, tmp_path: Path) -> None:
    repository = jars.mirror_of_central(_settings(tmp_path, _mirror("bank", of), namespace=namespace))
    assert repository is not None
    assert repository.url == "http://bank.example/maven"


@pytest.mark.parametrize("of", ["other", "*,!central", ""])
def test_a_mirror_of_something_else_is_not_used(of: str, tmp_path: Path) -> None:
    assert jars.mirror_of_central(_settings(tmp_path, _mirror("bank", of))) is None


def test_a_mirror_by_name_wins_over_a_pattern(tmp_path: Path) -> None:
    both = _mirror("any", "*") + _mirror("named", "central")
    repository = jars.mirror_of_central(_settings(tmp_path, both))
    assert repository is not None
    assert repository.url == "http://named.example/maven"


def test_a_mirrors_password_is_sent_and_never_shown(tmp_path: Path) -> None:
    server = "<server><id>bank</id><username>me</username><password>hunter2</password></server>"
    repository = jars.mirror_of_central(_settings(tmp_path, _mirror("bank", "*"), server))
    assert repository is not None
    assert repository.headers == {"Authorization": "Basic bWU6aHVudGVyMg=="}
    assert "hunter2" not in repr(repository)
    assert "bWU6" not in repr(repository)


def test_no_settings_no_mirror_and_broken_settings_one_line(tmp_path: Path) -> None:
    assert jars.mirror_of_central(tmp_path / "none.xml") is None
    (tmp_path / "broken.xml").write_text("<settings>")
    with pytest.raises(ConfigError, match=r"broken.xml: .*Correct the file"):
        jars.mirror_of_central(tmp_path / "broken.xml")


class _Files(http.server.BaseHTTPRequestHandler):
    """A repository that fails the first request for each path, as networks do."""

    content: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.content:
            self.send_error(404)
            return
        body = self.content[self.path]
        if self.asked.count(self.path) == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository() -> Iterator[tuple[Repository, type[_Files]]]:
    files = type("Files", (_Files,), {"content": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Repository(f"http://127.0.0.1:{server.server_port}", "a test's repository"), files
    server.shutdown()
    thread.join()
    server.server_close()


def _jar(body: bytes, name: str = "thing") -> Jar:
    return Jar("org.example", name, "1", hashlib.sha256(body).hexdigest(), len(body))


def test_jars_arrive_whole_through_broken_connections(
    repository: tuple[Repository, type[_Files]], tmp_path: Path
) -> None:
    where, files = repository
    bodies = [bytes([number]) * (1000 + number) for number in range(12)]
    wanted = [_jar(body, f"thing{number}") for number, body in enumerate(bodies)]
    files.content.update({f"/{jar.path}": body for jar, body in zip(wanted, bodies, strict=True)})
    meter = Meter()
    jars.fetch(wanted, where, tmp_path, meter)
    assert [(tmp_path / jar.file_name).read_bytes() for jar in wanted] == bodies
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(jar.file_name for jar in wanted)
    assert meter.byte_count == sum(map(len, bodies))


@pytest.mark.parametrize("sent", [b"other contents", b"longer than the list says", b"x"])
def test_another_file_under_the_same_name_is_refused_and_not_kept(
    sent: bytes, repository: tuple[Repository, type[_Files]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "_TRIES", 2)
    where, files = repository
    jar = _jar(b"what we want..")
    files.content[f"/{jar.path}"] = sent
    with pytest.raises((IntegrityError, NeighbourUnavailable)) as refused:
        jars.fetch([jar], where, tmp_path, Meter())
    assert "thing-1.jar" in str(refused.value)
    assert not (tmp_path / jar.file_name).exists()


def test_a_jar_that_the_mirror_lacks_is_named(
    repository: tuple[Repository, type[_Files]], tmp_path: Path
) -> None:
    with pytest.raises(MissingPart, match=r"thing-1.jar is not in a test's repository \(HTTP 404\)"):
        jars.fetch([_jar(b"x")], repository[0], tmp_path, Meter())


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "_TRIES", 1)
    where = Repository("http://127.0.0.1:9", "a test's repository")
    with pytest.raises(NeighbourUnavailable, match=r"no network: thing-1.jar .*Connect") as refused:
        jars.fetch([_jar(b"x")], where, tmp_path, Meter())
    assert "\n" not in str(refused.value)


def test_a_stamp_is_current_until_what_it_was_made_from_changes(tmp_path: Path) -> None:
    lock, mark = tmp_path / "lock", tmp_path / "stamps" / "step"
    lock.write_text("one")
    assert not stamp.is_current(mark, stamp.fingerprint([lock]))
    stamp.write(mark, stamp.fingerprint([lock]))
    assert stamp.is_current(mark, stamp.fingerprint([lock]))
    assert not stamp.is_current(mark, stamp.fingerprint([lock], "another fact"))
    lock.write_text("two")
    assert not stamp.is_current(mark, stamp.fingerprint([lock]))
    assert [path.name for path in mark.parent.iterdir()] == ["step"]


def test_the_second_setup_waits_for_the_first(tmp_path: Path) -> None:
    said = io.StringIO()
    order: list[str] = []

    def second() -> None:
        with stamp.only_one(tmp_path / "lock", Reporter(said)):
            order.append("second")

    with stamp.only_one(tmp_path / "lock", Reporter(said)):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert said.getvalue() == "Another setup runs in this folder: waiting for it.\n"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with steps.replacing(target, tmp_path / "scratch") as fresh:
        (fresh / "one").touch()

    def interrupted() -> None:
        with steps.replacing(target, tmp_path / "scratch") as fresh:
            (fresh / "two").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in target.iterdir()] == ["one"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_pips_index_serves_uv_too_unless_it_has_its_own() -> None:
    pip = packages.parse_pip_config(
        "global.index-url='http://files.example/simple'\n:env:.index-url='http://env.example/simple'\n"
        "global.cert='/etc/bank.pem'\nglobal.timeout='60'\n"
    )
    assert packages.index_settings(pip, {}) == {
        "UV_DEFAULT_INDEX": "http://env.example/simple",
        "SSL_CERT_FILE": "/etc/bank.pem",
        "UV_HTTP_TIMEOUT": "60",
    }
    own = {"UV_INDEX_URL": "http://uv.example", "SSL_CERT_FILE": "/own.pem", "UV_HTTP_TIMEOUT": "5"}
    assert packages.index_settings(pip, own) == {}


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (
            "error: Failed to fetch: `http://u:p@index.example/x`\n  Caused by: dns error",
            NeighbourUnavailable,
        ),
        ("ERROR: No matching distribution found for uv==0.13.9", NeighbourUnavailable),
        ("error: Hash mismatch for `numpy==2`\n\nExpected: sha256:1", IntegrityError),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", IntegrityError),
        ("error: something else", WeirError),
    ],
)
def test_an_installers_words_become_one_line_of_the_right_kind(output: str, kind: type[WeirError]) -> None:
    error = packages.explain("venv", output)
    assert type(error) is kind
    assert str(error).startswith("venv: ")
    assert "\n" not in str(error)
    assert "u:p@" not in str(error)


def test_progress_is_plain_lines_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.install.progress._PLAIN_EVERY_S", 0.01)
    said, told = io.StringIO(), threading.Event()

    class Watching(Reporter):
        def update(self, text: str) -> None:
            super().update(text)
            told.set()

    with progress(Watching(said), "kafka", 2_000_000) as meter:
        meter.add(500_000)
        assert told.wait(30)
    assert "kafka: 0.5 of 2.0 MB, 0 s\n" in said.getvalue()
    assert "\r" not in said.getvalue()
    assert "\x1b" not in said.getvalue()


def test_what_uv_says_of_its_downloads_is_counted() -> None:
    meter = Meter()
    downloads = packages.Downloads(meter)
    for line in (
        "Downloading numba (3.5MiB)",
        "Downloading grpcio (512.0KiB)",
        " Downloaded numba",
        "Prepared 2",
    ):
        downloads.read(line)
    assert meter.total_bytes == 4 * 1024 * 1024
    assert meter.byte_count == int(3.5 * 1024 * 1024)


@pytest.mark.parametrize(
    ("value", "words"), [(0.0123, "12 ms"), (3.44, "3.4 s"), (125.0, "2 min 5 s"), (99.94, "99.9 s")]
)
def test_a_duration_reads_well(value: float, words: str) -> None:
    assert seconds(value) == words


def _bootstrap(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, layout.ROOT / "infra" / "bootstrap.py", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_setup_needs_nothing_but_the_standard_library() -> None:
    """Isolated, without site-packages: whatever it imported beside the standard library would be missing."""
    script = str(layout.ROOT / "infra" / "bootstrap.py")
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_an_unknown_step_is_a_usage_error() -> None:
    done = _bootstrap("--only", "nothing")
    assert done.returncode == ExitCode.USAGE
    assert "venv" in done.stderr


def test_a_python_without_libpython_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_packages(package: str, target: Path) -> None:
        raise MissingPart(f"{package}: none")

    monkeypatch.setattr(triton_layout, "unpack_debian", no_packages)
    with pytest.raises(MissingPart, match=r"needs libpython9.9.so.1.0.*libpython9.9 package"):
        triton_layout.find_libpython("libpython9.9.so.1.0", "9.9", tmp_path)


def test_another_platform_is_told_that_triton_has_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(MissingPart, match=r"not on linux riscv64.*\[triton\] endpoint"):
        triton_layout.require_platform()


def test_a_machine_without_debians_tools_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPart, match="apt-get is missing"):
        tools.unpack_debian("prometheus", tmp_path / "tools")
    monkeypatch.setattr(tools, "_PROMTOOL", tmp_path / "none")
    with pytest.raises(MissingPart, match="--only tools"):
        tools.find_promtool()

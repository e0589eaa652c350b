"""`weir` as pip installs it: the wheel holds the SDK alone, which works with its own dependencies alone.

The wheel is built from a copy of the sources without the generated code, and installed into a fresh
environment where nothing is visible but the closure of its declared dependencies: links to this environment's
packages, so that no network is needed.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.local.pki import ensure_pki
from tests.support.decisions import decision_record, sealed_decisions, send
from tests.support.keys import running_keys_service
from tests.support.risk import toml_of
from weir.crypto.keyring import Keyring
from weir.errors import ExitCode

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "weir", "schemas", "protos", "infra/build")
# What the services bring.
SERVICES_HALF = {"weir.codec", "weir.features", "weir.inference", "weir.state", "weir.streams"}
# Seals and ids of whole columns; who opens a decision needs none of them.
CRYPTO_OF_SERVICES = {
    "weir.crypto.columns",
    "weir.crypto._gcm_kernels",
    "weir.crypto._hash_kernels",
    "weir.crypto._openssl",
}
HEAVY = {"numpy", "numba", "llvmlite", "faust", "mode", "sqlalchemy", "tritonclient", "services", "infra"}
DEADLINE_S = 60


def run(*command, **options):
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("_proto", "__pycache__"))
        else:
            shutil.copyfile(source, target)
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / "source")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of a fresh environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    done = run(folder / "bin" / "pip", "install", "--no-index", "--no-deps", "--no-compile", wheel)
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python3.*/site-packages")
    for name in closure("weir"):
        for top in tops(name):
            target = site / top.name
            if not target.exists():
                target.symlink_to(top)
    return folder


def closure(root):
    """The distributions that `root` wants without extras, and what those want."""
    found, waiting = set(), [(root, frozenset())]
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or []:
            wanted = Requirement(line)
            chosen = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if wanted.marker is not None and not any(wanted.marker.evaluate(each) for each in chosen):
                continue
            key = canonicalize_name(wanted.name)
            if key not in found or wanted.extras:
                found.add(key)
                waiting.append((key, frozenset(wanted.extras)))
    return found


def tops(name):
    """The files and folders in site-packages that a distribution consists of."""
    installed = distribution(name)
    names = {file.parts[0] for file in installed.files if file.parts[0] not in ("..", "__pycache__")}
    return [Path(installed.locate_file(top)) for top in names]


def test_wheel_holds_the_library_with_schemas_and_contracts_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops_held = {name.split("/")[0] for name in names}
    assert {top for top in tops_held if not top.endswith(".dist-info")} == {"weir"}
    for schema in (ROOT / "schemas").glob("*"):
        assert f"weir/_schemas/{schema.name}" in names
    assert "weir/_proto/weir/keys/v1/keys_pb2_grpc.py" in names
    assert "weir/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".onnx"))]


def test_wheel_says_its_licence_and_wants_the_sdk_s_dependencies_alone(wheel):
    with zipfile.ZipFile(wheel) as held:
        (metadata,) = [name for name in held.namelist() if name.endswith(".dist-info/METADATA")]
        lines = held.read(metadata).decode().splitlines()
    assert "License-Expression: Apache-2.0" in lines
    base = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in base for heavy in HEAVY if heavy in line]


def test_every_declared_dependency_is_met(environment):
    done = run(environment / "bin" / "pip", "check")
    assert done.returncode == 0, done.stdout


def test_import_brings_nothing_heavy(environment, tmp_path):
    code = (
        "import sys, json; import weir; alone = sorted(sys.modules); "
        "[getattr(weir, name) for name in weir.__all__]; "
        "print(json.dumps([weir.__file__, alone, sorted(sys.modules)]))"
    )
    done = run(environment / "bin" / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, alone, everything = json.loads(done.stdout)
    assert Path(where).is_relative_to(environment)
    assert not HEAVY & {name.split(".")[0] for name in everything}
    assert not {"aiokafka", "pydantic", "grpc", "fastavro"} & set(alone)


def test_every_module_of_the_library_imports_or_is_of_an_extra(environment, tmp_path):
    """Those that want numpy are the services' half of the library; no other package may be missing."""
    code = """
import importlib, pkgutil, weir
for found in pkgutil.walk_packages(weir.__path__, "weir."):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            print(error.name.split(".")[0], found.name)
"""
    done = run(environment / "bin" / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    missing = dict(line.split()[::-1] for line in done.stdout.splitlines())
    assert set(missing.values()) <= HEAVY
    rooms = {".".join(name.split(".")[:2]) for name in missing}
    assert rooms <= {"weir.columns", "weir.crypto", "weir.kafka", *SERVICES_HALF}, missing
    assert {name for name in missing if name.startswith("weir.crypto.")} <= CRYPTO_OF_SERVICES


def test_the_command_line_offers_what_it_can_and_says_what_it_lacks(environment, tmp_path):
    weir = environment / "bin" / "weir"
    shown = run(weir, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "decisions" in shown.stdout
    assert "simulate" not in shown.stdout
    for command in ("up", "simulate", "train", "keys"):
        done = run(weir, command, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (ExitCode.MISSING, 1), done.stderr
        assert "make setup" in done.stderr
    checked = run(weir, "schemas", "check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_ten_lines_publish_and_read_and_the_command_line_tails(environment, kafka, tmp_path):
    """The examples and the command line of the installed wheel against a real broker and key service."""
    topics = {
        name: kafka.make_topic(f"{owner}.{name}")
        for owner, name in (("bank", "transactions"), ("weir", "decisions"))
    }
    pki = ensure_pki(tmp_path / "pki")
    with running_keys_service(tmp_path / "keys", pki=pki) as keys:

        async def decide():
            async with await Keyring.connect(keys.settings("risk-worker")) as keyring:
                sealer = await keyring.sealer(topics["decisions"])
                messages = await sealed_decisions(sealer, [decision_record(index) for index in range(3)])
            await send(kafka.bootstrap_servers, topics["decisions"], messages)

        asyncio.run(decide())

        def settings(role):
            identity = pki.roles[role]
            certificate = {"ssl_certificate": identity.certificate, "ssl_key": identity.key}
            tables = {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
                "topics": topics,
                "keys": {"endpoint": keys.endpoint, "ssl_ca": pki.ca, **certificate},
            }
            path = tmp_path / f"{role}.toml"
            path.write_text(toml_of(tables))
            return {**os.environ, "WEIR_CONFIG": str(path), "COLUMNS": "200"}

        python = environment / "bin" / "python"
        done = run(python, ROOT / "examples" / "publish.py", cwd=tmp_path, env=settings("reader"))
        assert done.stdout.startswith("published at bank.transactions"), done.stderr
        example = [python, ROOT / "examples" / "read_decisions.py"]
        # On stderr aiokafka says that a fresh broker has no group coordinator yet.
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(example, env=settings("reader"), cwd=tmp_path, **quiet) as reading:
            try:
                lines = [reading.stdout.readline() for _ in range(3)]
            finally:
                reading.kill()
        assert {line.split()[0] for line in lines} == {"event-0", "event-1", "event-2"}
        command = ("decisions", "tail", "--no-follow", "--json")
        tailed = run(environment / "bin" / "weir", *command, cwd=tmp_path, env=settings("analyst"))
        assert tailed.returncode == 0, tailed.stderr
        assert [json.loads(line)["event_id"] for line in tailed.stdout.splitlines()] == [
            f"event-{index}" for index in range(3)
        ]

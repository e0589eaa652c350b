"""A schema may change only so that old and new read each other; the check says where it does not."""

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

import weir
from weir.codec import SUBJECTS, FileRegistry, Schema, compatibility, load_schema, schemas
from weir.codec.compatibility import check_compatibility, check_conventions, main
from weir.codec.schemas import canonical_text, fingerprint

REPOSITORY = Path(weir.__file__).parents[1]

Change = Callable[[Schema], Any]


def field(schema: Schema, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in schema["fields"] if f["name"] == name)
    return found


def drop(name: str) -> Change:
    return lambda s: s["fields"].remove(field(s, name))


def add(**parts: Any) -> Change:
    return lambda s: s["fields"].append({"doc": "A field.", "classification": "C1", **parts})


def retype(name: str, kind: Any) -> Change:
    return lambda s: field(s, name).update(type=kind)


BREAKS: dict[str, tuple[str, Change, str]] = {
    "field without default removed": ("transaction", drop("currency"), "Transaction.currency: removed"),
    "field without default added": (
        "transaction",
        add(name="device", type="string"),
        "Transaction.device: added without a default",
    ),
    "type changed": ("transaction", retype("event_id", "long"), "Transaction.event_id: type changed"),
    "type promoted": ("decision", retype("rules", {"type": "array", "items": "bytes"}), "Decision.rules"),
    "made nullable": ("transaction", retype("currency", ["null", "string"]), "Transaction.currency"),
    "scale changed": (
        "transaction",
        retype("amount", {"type": "bytes", "logicalType": "decimal", "precision": 19, "scale": 2}),
        "from bytes decimal(19,4) to bytes decimal(19,2)",
    ),
    "logical type lost": ("transaction", retype("event_time", "long"), "long timestamp-millis to long"),
    "union's branches turned": (
        "transaction",
        retype("country", ["string", "null"]),
        "Transaction.country: branches",
    ),
    "default lost": ("transaction", lambda s: field(s, "country").pop("default"), "lost its default"),
    "renamed": ("label", lambda s: s.update(name="Verdict"), "from record Label to record Verdict"),
    "moved": ("label", lambda s: s.update(namespace="weir.v2"), "renamed from weir.v1.Label"),
    "symbol added where readers have no default": (
        "decision",
        lambda s: field(s, "outcome")["type"]["symbols"].append("HOLD"),
        "Decision.outcome: symbols HOLD added",
    ),
    "symbol removed where readers have no default": (
        "decision",
        lambda s: field(s, "outcome")["type"]["symbols"].remove("REVIEW"),
        "Decision.outcome: symbols REVIEW removed",
    ),
    "field of a nested record removed": (
        "decision",
        lambda s: field(s, "reasons")["type"]["items"]["fields"].pop(),
        "Decision.reasons.text_zh: removed",
    ),
}
FINE: dict[str, tuple[str, Change]] = {
    "field with default added": ("transaction", add(name="device", type=["null", "string"], default=None)),
    "field with default removed": ("transaction", drop("country")),
    "documentation": ("transaction", lambda s: field(s, "country").update(doc="Another text.")),
    "symbol added where readers have a default": (
        "transaction",
        lambda s: field(s, "channel")["type"]["symbols"].append("QR"),
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_breaking_change_is_named(case: str) -> None:
    name, change, says = BREAKS[case]
    before = load_schema(name)
    after = deepcopy(before)
    change(after)
    lines = check_compatibility(after, [before])
    assert len(lines) == 1
    assert says in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("case", FINE)
def test_a_harmless_change_passes(case: str) -> None:
    name, change = FINE[case]
    after = load_schema(name)
    change(after)
    assert check_compatibility(after, [load_schema(name)]) == []
    assert check_conventions(after) == []


def test_every_registered_version_counts_and_not_the_last_alone() -> None:
    """A field is added, removed, then added as another type: only the first version is broken."""
    first, second, third = (load_schema("transaction") for _ in range(3))
    add(name="device", type=["null", "string"], default=None)(first)
    add(name="device", type=["null", "long"], default=None)(third)
    assert check_compatibility(third, [second]) == []
    assert len(check_compatibility(third, [first, second])) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: field(s, "country").pop("doc"), "Transaction.country: has no doc"),
        (lambda s: field(s, "country").update(classification="secret"), "has no classification"),
        (retype("amount", "double"), "money is a float"),
        (add(name="credit_limit", type=["null", "float"], default=None), "money is a float"),
    ],
)
def test_a_schema_that_breaks_convention_is_named(change: Change, says: str) -> None:
    schema = load_schema("transaction")
    change(schema)
    lines = check_conventions(schema)
    assert len(lines) == 1
    assert says in lines[0]


def test_the_repositorys_own_schemas_pass_and_are_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().err == ""


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The schemas in a folder of the test's own, which the command then works on."""
    for path in schemas.schemas_dir().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(compatibility, "schemas_dir", lambda: tmp_path)
    monkeypatch.setattr(
        compatibility, "load_schema", lambda name: json.loads((tmp_path / f"{name}.avsc").read_text())
    )
    return tmp_path


def edit(folder: Path, name: str, change: Change) -> None:
    path = folder / f"{name}.avsc"
    schema = json.loads(path.read_text())
    change(schema)
    path.write_text(json.dumps(schema))


def test_the_command_ends_with_1_and_a_line_for_each_break(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied, "transaction", drop("currency"))
    edit(copied, "label", retype("is_fraud", "int"))
    before = (copied / "registry.json").read_bytes()
    assert main(["--register"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Transaction.currency", "Label.is_fraud"]
    assert (copied / "registry.json").read_bytes() == before


def test_a_new_version_must_be_registered_and_keeps_the_ids_of_before(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied, "transaction", add(name="device", type=["null", "string"], default=None))
    assert main([]) == 1
    assert "--register" in capsys.readouterr().err
    assert main(["--register"]) == 0
    assert main([]) == 0
    versions = FileRegistry.read(copied / "registry.json").subjects[SUBJECTS["transaction"]]
    assert [(v.version, v.id) for v in versions] == [(1, 1), (2, len(SUBJECTS) + 1)]


def test_a_schema_that_is_not_avro_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copied, "label", retype("is_fraud", "bool"))
    assert main([]) == 7
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_fingerprint_looks_past_documentation_and_the_order_of_keys() -> None:
    schema = load_schema("label")
    turned = json.loads(json.dumps(schema), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    turned["fields"][0]["doc"] = "Another."
    assert fingerprint(turned) == fingerprint(schema)
    assert "doc" not in canonical_text(schema)


def test_an_installed_wheel_brings_the_schemas(tmp_path: Path) -> None:
    """Build the wheel, unpack it, and load a schema from there alone."""
    wheel = next(WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"]))
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, str(site)], check=True)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from weir.codec import FileRegistry, load_schema\nfrom weir.codec.schemas import schemas_dir\n"
        "print(schemas_dir()); load_schema('decision'); assert FileRegistry.read().known(4)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(site / "weir" / "_schemas")

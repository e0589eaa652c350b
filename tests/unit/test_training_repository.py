"""Versions are written whole, and a damaged one is refused in one line that says what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.training.additive import AdditiveModel, Calibration, Table
from services.training.errors import ModelBroken, ModelMissing, TrainingError
from services.training.export import to_onnx
from services.training.repository import ModelRepository
from weir.features.payments import FEATURE_SPEC, FEATURES

SHIPPED = Path(__file__).parents[2] / "triton_models"
NAMES = ("amount", "risk")


def model(names=NAMES) -> AdditiveModel:
    edges, values = np.float32([1, 2]), np.array([-0.5, 0.25, 1.0])
    return AdditiveModel(names, (Table((0,), (edges,), (values,)),), -3.0, Calibration(1.1, 0.9, 0.1))


def about(version="1", names=NAMES) -> dict:
    return {
        "name": "risk", "version": version, "features": list(names), "feature_spec": "abc",
        "base_logit": -3.0, "trained": {}, "metrics": {},
    }  # fmt: skip


def write(home: ModelRepository, version="1", names=NAMES, **options) -> Path:
    graph = to_onnx(model(names), name="risk", feature_spec="abc")

    def cards(whole):
        return {"MODEL_CARD.md": f"# card of {whole['sha256']}\n"}

    return home.write(graph, about(version, names), cards, **options)


@pytest.fixture
def home(tmp_path) -> ModelRepository:
    home = ModelRepository(tmp_path / "models")
    write(home)
    return home


def test_a_written_version_verifies_and_scores(home):
    served = home.verify("risk", "1", features=NAMES)
    out = served.run(np.float32([[1.5, 0], [9, 9]]))
    assert out["logit"].ravel().tolist() == pytest.approx([-2.75, -2.0])
    assert out["contributions"][:, 0].tolist() == [0.25, 1.0]
    assert home.names() == ["risk"]
    assert home.versions("risk") == [1]
    assert home.next_version("risk") == "2"


def test_config_is_what_triton_parses_and_needs(home):
    config = text_format.Parse((home.root / "risk/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("risk", "onnxruntime", 4096)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [
        ("logit", [1]), ("probability", [1]), ("contributions", [2]),
    ]  # fmt: skip


def test_a_version_is_not_overwritten_unless_asked(home):
    before = (home.root / "risk/1/model.onnx").read_bytes()
    with pytest.raises(TrainingError, match="--replace"):
        write(home)
    write(home, replace=True)
    assert (home.root / "risk/1/model.onnx").read_bytes() == before


def test_a_version_of_another_width_is_refused_beside_the_old_one(home):
    with pytest.raises(TrainingError, match=r"config\.pbtxt fits versions 1"):
        write(home, "2", ("amount", "risk", "night"))
    assert home.versions("risk") == [1]
    home.verify("risk", "1")


def test_a_write_that_fails_halfway_leaves_the_old_version_and_no_rest(home, monkeypatch):
    def full(path, data):
        if path.name == "MODEL_CARD.md":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("services.training.repository.write_file", full)
    with pytest.raises(OSError, match="No space"):
        write(home, replace=True)
    with pytest.raises(OSError, match="No space"):
        write(home, "2")
    assert sorted(path.name for path in (home.root / "risk").iterdir()) == ["1", "config.pbtxt"]
    home.verify("risk", "1")


def truncate(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def truncate_and_sign(folder: Path) -> None:
    import hashlib

    truncate(folder)
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    edit(folder, sha256=digest)


def edit(folder: Path, **changes) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "truncated": (truncate, "checksum"),
    "truncated, with its checksum": (truncate_and_sign, "does not load"),
    "other checksum": (lambda folder: edit(folder, sha256="0" * 64), "checksum"),
    "other feature order": (lambda folder: edit(folder, features=["risk", "amount"]), "order of features"),
    "fewer features": (lambda folder: edit(folder, features=["amount"]), "config.pbtxt has another"),
    "other feature spec": (lambda folder: edit(folder, feature_spec="xyz"), "feature_spec"),
    "other version inside": (lambda folder: edit(folder, version="7"), "its place says '1'"),
    "other base": (lambda folder: edit(folder, base_logit=1.0), "do not add up"),
    "no onnx": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx cannot be read"),
    "no json": (lambda folder: (folder / "model.json").unlink(), "model.json cannot be read"),
    "broken json": (lambda folder: (folder / "model.json").write_text("{"), "not JSON"),
    "empty json": (lambda folder: (folder / "model.json").write_text("{}"), "must have name"),
    "no config": (lambda folder: (folder.parent / "config.pbtxt").unlink(), "config.pbtxt cannot be read"),
    "broken config": (lambda folder: (folder.parent / "config.pbtxt").write_text("name: {"), "line 1"),
    "other output": (
        lambda folder: (folder.parent / "config.pbtxt").write_text(
            (folder.parent / "config.pbtxt").read_text().replace('"logit"', '"score"')
        ),
        "another name, inputs or outputs",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_told_in_one_line(home, damage):
    change, words = DAMAGES[damage]
    change(home.root / "risk/1")
    with pytest.raises(ModelBroken, match=words) as caught:
        home.verify("risk", "1")
    assert "\n" not in str(caught.value)


def test_features_in_another_order_than_the_code_computes_are_refused(home):
    with pytest.raises(ModelBroken, match="feature 0 is 'amount', this code computes 'risk'"):
        home.open("risk", "1", features=("risk", "amount"))


def test_a_version_that_is_not_there_is_missing(home):
    with pytest.raises(ModelMissing, match="no version 9 of risk"):
        home.open("risk", "9")


def test_shipped_models_are_whole_and_made_for_these_features():
    home = ModelRepository(SHIPPED)
    versions = home.versions("risk")
    assert versions
    for version in versions:
        served = home.verify("risk", str(version), features=FEATURES)
        assert served.about["feature_spec"] == FEATURE_SPEC, "train it again: `weir train risk`"


def test_the_shipped_models_reasons_add_up_on_every_row():
    served = ModelRepository(SHIPPED).open("risk", "1")
    random = np.random.default_rng(3)
    x = random.lognormal(0, 3, (10_000, len(FEATURES))).astype(np.float32) * random.integers(
        0, 2, (10_000, 1)
    )
    out = served.run(x.astype(np.float32))
    total = served.about["base_logit"] + out["contributions"].sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(out["logit"].ravel(), total, atol=1e-4)
    assert ((out["probability"] >= 0) & (out["probability"] <= 1)).all()

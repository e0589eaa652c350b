"""A worker serves only a model that was trained on the features that it computes."""

import json
from pathlib import Path

import pytest

from services.risk.scoring import ServedModel
from weir.errors import ConfigError, MissingPart
from weir.features.payments import DEFAULT, FEATURES


def written(repository: Path, version: str, **changed: object) -> None:
    folder = repository / "risk" / version
    folder.mkdir(parents=True)
    card = {
        "name": "risk",
        "version": version,
        "sha256": "0" * 64,
        "features": list(FEATURES),
        "feature_spec": DEFAULT.id,
        "base_logit": -5.0,
    }
    (folder / "model.json").write_text(json.dumps(card | changed), encoding="utf-8")


def test_the_newest_version_is_taken_by_number_and_a_pinned_one_as_named(tmp_path):
    for version in ("2", "10"):
        written(tmp_path, version)
    assert ServedModel.read(tmp_path, "risk", None).ref.version == "10"
    assert ServedModel.read(tmp_path, "risk", "2").ref.version == "2"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"features": list(reversed(FEATURES))}, "other features"),
        ({"feature_spec": "0123456789ab"}, "0123456789ab"),
        ({"base_logit": None}, "models verify"),
    ],
)
def test_a_model_of_other_features_is_refused_in_one_line(tmp_path, changed, says):
    written(tmp_path, "1", **changed)
    with pytest.raises(ConfigError, match=says) as error:
        ServedModel.read(tmp_path, "risk", None)
    assert "\n" not in str(error.value)


def test_an_empty_repository_says_how_to_make_a_model(tmp_path):
    with pytest.raises(MissingPart, match="weir train risk"):
        ServedModel.read(tmp_path, "risk", None)

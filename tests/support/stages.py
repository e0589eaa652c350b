"""A model repository whose versions climb by two people's signatures."""

import json
import shutil
from pathlib import Path

import onnx

from infra.local import layout
from services.training.additive import AdditiveModel
from services.training.export import to_onnx
from services.training.imported import from_onnx
from services.training.repository import ModelRepository
from services.training.stages import Signer, StageLog, add_person
from weir.inference.stages import PEOPLE, Stage

SHIPPED = layout.MODEL_SOURCES / "risk"
RIGHTS = ("register", "propose", "approve")


def repository_of(root: Path, *versions: str) -> ModelRepository:
    """The shipped model under each of these numbers, each with a base logit of its own."""
    home = ModelRepository(root)
    shipped = from_onnx(onnx.load(SHIPPED / "1" / "model.onnx"))
    about = json.loads((SHIPPED / "1" / "model.json").read_text())
    for number in versions:
        base = shipped.base_logit - 0.125 * int(number)
        moved = AdditiveModel(shipped.features, shipped.tables, base, shipped.calibration)
        graph = to_onnx(moved, name="risk", feature_spec=about["feature_spec"])
        home.write(
            graph, {**about, "version": number, "base_logit": base}, lambda _: {"CARD.md": "# a card\n"}
        )
    shutil.copy(SHIPPED / "config.pbtxt", root / "risk")
    return home


def signers(home: ModelRepository, keys: Path) -> dict[str, Signer]:
    """Two people, a guard, and one who may only register."""
    made = {}
    for name, may in (("anna", RIGHTS), ("bo", RIGHTS), ("guard", ("undo",)), ("eve", ("register",))):
        made[name] = Signer.create(name, keys / f"{name}.pem", None)
        add_person(home.root / PEOPLE, made[name], may)
    return made


def step(
    log: StageLog, people: dict[str, Signer], version: str, to: Stage, share: float | None = None
) -> None:
    """Anna proposes, Bo approves; a canary is for a tenth of the accounts where nothing else is said."""
    if to is Stage.CANARY and share is None:
        share = 0.1
    log.approve(log.propose(version, to, "it is better", people["anna"], share), people["bo"])

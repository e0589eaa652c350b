"""Triton's model repository on disk: versions written whole, read back checked.

    triton_models/risk/config.pbtxt        signature and batching, for the stock Triton image
    triton_models/risk/<version>/model.onnx
    triton_models/risk/<version>/model.json        what it is, where from, how good: read by every service
    triton_models/risk/<version>/MODEL_CARD.md     the same for people, MODEL_CARD.zh.md in Chinese

A version folder appears with one rename, after its files are on disk: nobody sees half a model.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from services.training.additive import Floats, Floats32
from services.training.errors import ModelBroken, ModelMissing, TrainingError
from services.training.export import INPUT, OUTPUTS

MAX_BATCH_ROWS = 4096
REQUIRED = ("name", "version", "sha256", "features", "feature_spec", "base_logit", "trained", "metrics")


def config_text(name: str, feature_count: int, versions: Sequence[int] = ()) -> str:
    """`config.pbtxt` for Triton's ONNX Runtime backend; trees run on the CPU, so that is where it is put.

    Args:
        versions: which to serve, as the log of stages says; the newest two where there is none.
    """
    listed = ", ".join(map(str, versions))
    policy = f"specific {{ versions: [ {listed} ] }}" if versions else "latest { num_versions: 2 }"
    return f"""\
# Written by `weir train`; the signature holds for every version in this folder.
name: "{name}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
{tensor_lines(feature_count)}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{
  preferred_batch_size: [ 256, 1024, 4096 ]
  max_queue_delay_microseconds: 0
}}
version_policy {{ {policy} }}
# One thread: more would split a sum by the rows of a call, and a score's last bits would hang on its company.
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def tensor_lines(feature_count: int) -> str:
    """The part of a configuration that says what goes in and what comes out, wherever it is computed."""
    return f"""\
max_batch_size: {MAX_BATCH_ROWS}
input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {feature_count} ] }} ]
output [
  {{ name: "logit" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "probability" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "contributions" data_type: TYPE_FP32 dims: [ {feature_count} ] }}
]"""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version as it lies in the repository, checked and ready to score."""

    folder: Path
    about: Mapping[str, Any]
    session: onnxruntime.InferenceSession

    @property
    def features(self) -> tuple[str, ...]:
        """The order of the input's columns."""
        return tuple(self.about["features"])

    def run(self, x: Floats32) -> dict[str, Floats32]:
        """logit (n, 1), probability (n, 1), contributions (n, F), float32."""
        parts = [
            self.session.run(list(OUTPUTS), {INPUT: x[start : start + 65_536]})
            for start in range(0, max(len(x), 1), 65_536)
        ]
        return {name: np.concatenate(columns) for name, *columns in zip(OUTPUTS, *parts, strict=True)}

    def score(self, x: Floats32) -> Floats:
        """The logit, (n,) float64."""
        return self.run(x)["logit"].ravel().astype(np.float64)

    def probability(self, x: Floats32) -> Floats:
        """The calibrated probability, (n,) float64."""
        return self.run(x)["probability"].ravel().astype(np.float64)


class ModelRepository:
    """The folder that Triton serves from."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Models that have a configuration."""
        return sorted(path.parent.name for path in self.root.glob("*/config.pbtxt"))

    def versions(self, name: str) -> list[int]:
        """Versions of a model that carry a model.json, ascending."""
        found = (path.parent.name for path in (self.root / name).glob("*/model.json"))
        return sorted(int(version) for version in found if version.isdigit())

    def about(self, name: str, version: str) -> Mapping[str, Any]:
        """What a version's model.json says.

        Raises:
            ModelMissing: no such version. ModelBroken: model.json cannot be read.
        """
        folder = self.root / name / version
        if not folder.is_dir():
            raise ModelMissing(name, version, self.root)
        return _about(folder)

    def next_version(self, name: str) -> str:
        """One above the highest number there is."""
        taken = [int(path.name) for path in (self.root / name).glob("*") if path.name.isdigit()]
        return str(max(taken, default=0) + 1)

    def write(
        self,
        graph: onnx.ModelProto,
        about: Mapping[str, Any],
        cards: Callable[[Mapping[str, Any]], Mapping[str, str]],
        *,
        replace: bool = False,
    ) -> Path:
        """Put a version there, whole; its folder.

        Args:
            about: what model.json says; `sha256` is added here.
            cards: makes what people read from that, by the file's name.
            replace: take the place of a version of that number, if there is one.
        Raises:
            TrainingError: the version exists, or other versions have another number of features.
            OSError: the disk is full, or the folder may not be written; nothing has changed.
        """
        name, version = str(about["name"]), str(about["version"])
        home = self.root / name
        target = home / version
        if target.exists() and not replace:
            raise TrainingError(f"{target} exists. Take another --version, or say --replace.")
        data = graph.SerializeToString(deterministic=True)
        whole = {**about, "sha256": hashlib.sha256(data).hexdigest()}
        config = config_text(name, len(whole["features"]), self.listed(name))
        others = [each for each in self.versions(name) if str(each) != version]
        config_path = home / "config.pbtxt"
        if others and config_path.exists() and config_path.read_text() != config:
            raise TrainingError(
                f"{config_path} fits versions {', '.join(map(str, others))} and would have to change. "
                "Move those away first."
            )
        home.mkdir(parents=True, exist_ok=True)
        # Triton reads folders that are numbers; one that begins with a dot is no version.
        staging = home / f".{version}.{os.getpid()}.partial"
        try:
            staging.mkdir()
            write_file(staging / "model.onnx", data)
            write_file(staging / "model.json", (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())
            for file, text in cards(whole).items():
                write_file(staging / file, text.encode())
            partial = staging / "config.pbtxt"
            write_file(partial, config.encode())
            os.replace(partial, config_path)
            old = home / f".{version}.{os.getpid()}.old"
            if target.exists():
                os.replace(target, old)
            os.replace(staging, target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target

    def listed(self, name: str) -> list[int]:
        """The versions that `config.pbtxt` names to be served; none where it leaves that to Triton."""
        try:
            text = (self.root / name / "config.pbtxt").read_text(encoding="utf-8")
            found = text_format.Parse(text, model_config_pb2.ModelConfig())
        except (OSError, text_format.ParseError):
            return []
        return [int(version) for version in found.version_policy.specific.versions]

    def serve(self, name: str, versions: Sequence[str]) -> None:
        """Have `config.pbtxt` name these versions to be served; nothing happens where it does.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        wanted = [int(version) for version in versions]
        if not wanted or wanted == self.listed(name):
            return
        path = self.root / name / "config.pbtxt"
        text = config_text(name, len(self.about(name, versions[-1])["features"]), wanted)
        partial = path.with_name(f".config.{os.getpid()}.partial")
        write_file(partial, text.encode())
        os.replace(partial, path)

    def open(self, name: str, version: str, *, features: Sequence[str] | None = None) -> ServedModel:
        """The version, after every check of `verify`.

        Args:
            features: the order that the caller computes them in; None to take the model's.
        Raises:
            ModelMissing: no such version. ModelBroken: the first thing that does not agree.
        """
        folder, about = self.root / name / version, self.about(name, version)
        for key, value in (("name", name), ("version", version)):
            if str(about[key]) != value:
                raise ModelBroken(folder, f"model.json says {key} {about[key]!r}, its place says {value!r}")
        try:
            data = (folder / "model.onnx").read_bytes()
        except OSError as error:
            raise ModelBroken(folder, f"model.onnx cannot be read ({error.strerror})") from error
        if (found := hashlib.sha256(data).hexdigest()) != about["sha256"]:
            raise ModelBroken(folder, f"model.onnx has checksum {found[:12]}…, not {about['sha256'][:12]}…")
        if features is not None and list(features) != list(about["features"]):
            raise ModelBroken(folder, f"model.json: {_difference(features, about['features'])}")
        _check_config(self.root / name / "config.pbtxt", folder, name, len(about["features"]))
        return ServedModel(folder, about, _session(folder, data, about))

    def verify(self, name: str, version: str, *, features: Sequence[str] | None = None) -> ServedModel:
        """`open`, and one row scored: finite, with contributions that add up to the logit.

        Raises:
            ModelMissing, ModelBroken: as `open`, or the row does not add up.
        """
        model = self.open(name, version, features=features)
        out = model.run(np.zeros((1, len(model.features)), np.float32))
        if any(not np.isfinite(values).all() for values in out.values()):
            raise ModelBroken(model.folder, "a row of zeros gives a value that is not finite")
        total = float(model.about["base_logit"]) + float(out["contributions"].sum())
        if abs(total - float(out["logit"][0, 0])) > 1e-4:
            raise ModelBroken(model.folder, "base_logit and the contributions do not add up to the logit")
        return model


def write_file(path: Path, data: bytes) -> None:
    """Bytes that are on the disk when it returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelBroken(folder, f"model.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelBroken(folder, f"model.json is not JSON ({error})") from error
    if not isinstance(about, dict) or any(key not in about for key in REQUIRED):
        raise ModelBroken(folder, f"model.json must have {', '.join(REQUIRED)}")
    return about


def _difference(expected: Sequence[str], found: Sequence[str]) -> str:
    for index, (left, right) in enumerate(zip(expected, found, strict=False)):
        if left != right:
            return f"feature {index} is {right!r}, this code computes {left!r}"
    return f"{len(found)} features, this code computes {len(expected)}"


def _check_config(path: Path, folder: Path, name: str, feature_count: int) -> None:
    try:
        found = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise ModelBroken(folder, f"config.pbtxt cannot be read ({error.strerror})") from error
    except text_format.ParseError as error:
        line = error.GetLine()
        raise ModelBroken(folder, f"config.pbtxt, line {line}: not a model configuration") from error
    expected = text_format.Parse(config_text(name, feature_count), model_config_pb2.ModelConfig())
    if found.name != name or _signature(found) != _signature(expected):
        raise ModelBroken(folder, "config.pbtxt has another name, inputs or outputs than the model")


def _signature(config: Any) -> set[tuple[str, str]]:
    return {
        (kind, json.dumps(json_format.MessageToDict(tensor), sort_keys=True))
        for kind in ("input", "output")
        for tensor in getattr(config, kind)
    }


def _session(folder: Path, data: bytes, about: Mapping[str, Any]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes have no common base that it exports
        raise ModelBroken(folder, f"model.onnx does not load ({type(error).__name__})") from error
    width = len(about["features"])
    shapes = {INPUT: width, "logit": 1, "probability": 1, "contributions": width}
    found = {tensor.name: tensor.shape[-1] for tensor in (*session.get_inputs(), *session.get_outputs())}
    if found != shapes:
        raise ModelBroken(folder, f"model.onnx has tensors {found}, not {shapes}")
    inside = session.get_modelmeta().custom_metadata_map
    if json.loads(inside.get("weir.features", "null")) != list(about["features"]):
        raise ModelBroken(folder, "model.onnx was made for another order of features than model.json says")
    if inside.get("weir.feature_spec") != about["feature_spec"]:
        raise ModelBroken(folder, "model.onnx was made for another feature_spec than model.json says")
    return session

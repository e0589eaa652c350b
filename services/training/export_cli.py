"""`weir models export`: the model in another form, for a GPU."""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.training.command import Repository
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings


class GpuBackend(StrEnum):
    """What serves it."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"
    TENSORRT = "tensorrt"


class Bits(StrEnum):
    """How a share is stored."""

    FLOAT32 = "32"
    INT8 = "8"


def export(
    version: Annotated[str, typer.Argument(help="A version in the repository.")],
    out: Annotated[Path, typer.Option("--out", help="A new model repository.")],
    backend: Annotated[GpuBackend, typer.Option(help="Of Triton.")] = GpuBackend.ONNXRUNTIME,
    bits: Annotated[Bits, typer.Option(help="Of a stored share: 32 or 8.")] = Bits.FLOAT32,
    repository: Repository = None,
) -> None:
    """Write a version as tensor operators, with Triton's configuration for a GPU."""
    import onnx

    from services.training.imported import from_onnx
    from services.training.repository import ModelRepository, write_file
    from services.training.tensors import gpu_config, plan_command, to_tensors

    home = ModelRepository(repository or TrainingSettings.load().repository)
    served = home.open("risk", version)
    folder = out / "risk" / version
    if folder.exists():
        raise TrainingError(f"{folder} exists. Take another --out.")
    model = from_onnx(onnx.load(served.folder / "model.onnx"))
    graph = to_tensors(
        model,
        name="risk",
        feature_spec=str(served.about["feature_spec"]),
        bits=8 if bits is Bits.INT8 else 32,
    )
    folder.mkdir(parents=True)
    data = graph.SerializeToString(deterministic=True)
    form = {"from": served.about["sha256"], "form": "tensors", "bits": int(bits.value)}
    about = {
        **served.about,
        "sha256": hashlib.sha256(data).hexdigest(),
        "trained": {**served.about["trained"], "exported": form},
    }
    write_file(folder / "model.onnx", data)
    write_file(folder / "model.json", (json.dumps(about, indent=2, allow_nan=False) + "\n").encode())
    text = gpu_config("risk", len(model.features), backend.value)
    write_file(out / "risk" / "config.pbtxt", text.encode())
    typer.echo(
        f"{folder / 'model.onnx'}: for Triton's {backend.value} on a GPU, shares in {bits.value} bits."
    )
    typer.echo("It was not run on a GPU: compare its answers with the served version's before it decides.")
    if backend is GpuBackend.TENSORRT:
        typer.echo(f"Where it is served, in {folder}: {plan_command(len(model.features))}")

"""A published model to a folder that ONNX Runtime serves, without torch."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import onnx

from infra.llm.errors import NotConvertible
from infra.llm.graph import BITS, DataFile, GraphBuilder, Quantisation
from infra.llm.hugging_face import FolderWeights, folder_tokens
from infra.llm.tokens import Tokens, tokens_of
from infra.llm.weights import Floats, GgufWeights, Shape
from infra.weights.quantise import BLOCK
from weir.errors import MissingPart

GRAPH, DATA, TOKENIZER, ABOUT = "model.onnx", "model.onnx.data", "tokenizer.json", "llm.json"
# By bits, in blocks of 32: a weight, a share of four bytes of scale, and of a zero or an offset.
_BYTES_A_WEIGHT = {None: 4.0, 8: 1 + 5 / BLOCK, 4: 0.5 + 8 / BLOCK}


class Source(Protocol):
    """Weights that know where they come from; see `infra.llm.weights.GgufWeights`."""

    path: Path

    @property
    def shape(self) -> Shape:
        """The model's sizes."""

    @property
    def files(self) -> list[Path]:
        """What it is read from."""

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""

    def vector(self, name: str) -> Floats:
        """A tensor of one dimension."""

    def matrix(self, name: str) -> Floats:
        """A tensor of two dimensions."""

    def rotary_factors(self) -> Floats | None:
        """What stretches each rotary frequency; None where nothing does."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes.

    disk: of the converted files. converting: memory while it is converted, beside the source's pages.
    weights, cache: memory while it serves, of the weights and of all conversations' keys and values.
    """

    disk: int
    converting: int
    weights: int
    cache: int

    @property
    def serving(self) -> int:
        """Memory while it serves."""
        return self.weights + self.cache


def need_of(shape: Shape, quantisation: Quantisation, *, context: int, conversations: int) -> Need:
    """What converting and serving will take, from the sizes alone."""
    layers, ends = (_BYTES_A_WEIGHT[bits] for bits in BITS[quantisation])
    weights = int(shape.layer_parameters * layers + shape.end_parameters * ends)
    # The largest matrix as float32, and what is made of it.
    rows = max(shape.vocabulary, 2 * shape.feed_forward)
    return Need(weights, 4 * 4 * rows * shape.hidden, weights, conversations * shape.cache_bytes(context))


def convert(
    source: Path, target: Path, *, context: int | None = None, quantisation: Quantisation = "int8"
) -> Shape:
    """Convert a GGUF file, or a folder of published weights, into the folder `target`.

    It appears only once it is whole.

    Args:
        context: tokens of a conversation at most; None takes what the model was made for, up to 4,096.
    Raises:
        NotConvertible, WeightsBroken: see there. MissingPart: too little room on the disk.
    """
    weights, tokens = opened(source)
    write_converted(weights, tokens, target, context=context, quantisation=quantisation)
    return weights.shape


def write_converted(
    weights: Source,
    tokens: Tokens,
    target: Path,
    *,
    context: int | None = None,
    quantisation: Quantisation = "int8",
    compressed: str | None = None,
) -> None:
    """Write opened weights into the folder `target`, which appears only once it is whole.

    Args:
        context: as of `convert`. compressed: how the weights were changed before; it stands in llm.json.
    Raises:
        NotConvertible, WeightsBroken: see there. MissingPart: too little room on the disk.
    """
    shape = weights.shape
    length = context or min(shape.context, 4096)
    _require_sizes(weights.path, shape, length, quantisation)
    require_room(target, need_of(shape, quantisation, context=length, conversations=1).disk)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        fresh = Path(folder) / "fresh"
        fresh.mkdir()
        with DataFile(fresh / DATA) as data:
            graph = GraphBuilder(weights, data, context=length, quantisation=quantisation).build()
        onnx.save(graph, fresh / GRAPH)
        tokens.tokenizer.save(str(fresh / TOKENIZER))
        about = _about(weights, fresh, tokens, length, quantisation)
        if compressed is not None:
            about["compressed"] = compressed
        (fresh / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(Path(folder) / "old")
        fresh.rename(target)


def open_weights(source: Path) -> GgufWeights | FolderWeights:
    """The weights in a GGUF file, or in a folder as Hugging Face publishes it.

    Raises:
        NotConvertible, WeightsBroken: see there. OSError: it cannot be read.
    """
    return FolderWeights(source) if source.is_dir() else GgufWeights(source)


def opened(source: Path) -> tuple[GgufWeights | FolderWeights, Tokens]:
    """The weights with their tokeniser.

    Raises:
        NotConvertible, WeightsBroken: see there. OSError: it cannot be read.
    """
    weights = open_weights(source)
    return weights, folder_tokens(weights) if isinstance(weights, FolderWeights) else tokens_of(weights)


def _about(
    weights: Source,
    folder: Path,
    tokens: Tokens,
    context: int,
    quantisation: Quantisation,
) -> dict[str, object]:
    """What whoever serves the folder has to know, and what whoever asks where it comes from."""
    return {
        "shape": asdict(weights.shape),
        "context": context,
        "quantisation": quantisation,
        "begin": tokens.begin,
        "ends": list(tokens.ends),
        "chat_template": tokens.chat_template,
        "source": {
            "file": weights.path.name,
            "sha256": {path.name: sha256_of(path) for path in weights.files},
        },
        "sha256": {name: sha256_of(folder / name) for name in (GRAPH, DATA, TOKENIZER)},
    }


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_sizes(source: Path, shape: Shape, context: int, quantisation: Quantisation) -> None:
    inputs = (shape.hidden, shape.feed_forward, shape.head_dim * shape.head_count)
    if quantisation != "float32" and (odd := [size for size in inputs if size % BLOCK]):
        raise NotConvertible(source, f"a size of {odd[0]} is no multiple of {BLOCK}")
    if context > shape.context:
        raise NotConvertible(source, f"it was made for {shape.context} tokens, {context} are asked for")


def require_room(target: Path, need: int) -> None:
    """Nothing, where the disk that will hold `target` has `need` bytes free.

    Raises:
        MissingPart: it has fewer.
    """
    there = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise MissingPart(
            f"The model takes {need / 1e9:.1f} GB on the disk of {there}, which has {free / 1e9:.1f} GB "
            "free. Make room, or choose another folder."
        )

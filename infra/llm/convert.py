"""A published model to a folder that ONNX Runtime serves, without torch."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from infra.llm.errors import NotConvertible
from infra.llm.graph import DataFile, GraphBuilder, Quantisation
from infra.llm.hugging_face import FolderWeights, folder_tokens
from infra.llm.tokens import Tokens, tokens_of
from infra.llm.weights import GgufWeights, Shape
from infra.weights.quantise import BLOCK
from weir.errors import MissingPart

GRAPH, DATA, TOKENIZER, ABOUT = "model.onnx", "model.onnx.data", "tokenizer.json", "llm.json"
# int8 in blocks of 32: a byte a weight, four of scale and one of zero a block.
_BYTES_A_WEIGHT = {"int8": 1 + 5 / BLOCK, "float32": 4.0}


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
    weights = int(shape.parameter_count * _BYTES_A_WEIGHT[quantisation])
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
    shape = weights.shape
    length = context or min(shape.context, 4096)
    _require_sizes(source, shape, length, quantisation)
    _require_room(target, need_of(shape, quantisation, context=length, conversations=1))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        fresh = Path(folder) / "fresh"
        fresh.mkdir()
        with DataFile(fresh / DATA) as data:
            graph = GraphBuilder(weights, data, context=length, quantisation=quantisation).build()
        onnx.save(graph, fresh / GRAPH)
        tokens.tokenizer.save(str(fresh / TOKENIZER))
        about = _about(weights, fresh, tokens, length, quantisation)
        (fresh / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(Path(folder) / "old")
        fresh.rename(target)
    return shape


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
    weights: GgufWeights | FolderWeights,
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
    if quantisation == "int8" and (odd := [size for size in inputs if size % BLOCK]):
        raise NotConvertible(source, f"a size of {odd[0]} is no multiple of {BLOCK}")
    if context > shape.context:
        raise NotConvertible(source, f"it was made for {shape.context} tokens, {context} are asked for")


def _require_room(target: Path, need: Need) -> None:
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < need.disk:
        raise MissingPart(
            f"The model takes {need.disk / 1e9:.1f} GB on the disk of {there}, which has {free / 1e9:.1f} GB "
            "free. Make room, or choose another folder."
        )

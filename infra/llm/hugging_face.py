"""A decoder in a folder as Hugging Face publishes it: config.json, safetensors, tokenizer.json.

Tensors are asked for by GGUF's names, which the rest of this room speaks; query and key rows lie here as in
the papers.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from infra.llm.errors import NotConvertible, WeightsBroken
from infra.llm.tokens import Tokens, turn_ends_of
from infra.llm.weights import ARCHITECTURES, Floats, Shape, tensor_names
from infra.weights.safetensors import Safetensors, SafetensorsBroken

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class FolderWeights:
    """The weights in a folder, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            WeightsBroken: a file is missing or damaged.
            NotConvertible: another architecture, or a tensor lacks.
        """
        self.path = path
        self.config = _json(path / "config.json")
        self._tensors = self._open()
        self.shape = self._shape()
        if lacking := [name for name in tensor_names(self.shape) if not self.has(name)]:
            raise NotConvertible(path, f"tensor {lacking[0]} lacks, and {len(lacking) - 1} more")

    @property
    def files(self) -> list[Path]:
        """What the model is made from."""
        return sorted([*self.path.glob("*.safetensors"), self.path / "config.json"])

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return _published(name) in self._tensors

    def vector(self, name: str) -> Floats:
        """(n,) float32."""
        return np.asarray(self._tensors[_published(name)], np.float32).reshape(-1)

    def matrix(self, name: str) -> Floats:
        """(outputs, inputs) float32, query and key rows in the order of the papers."""
        return np.asarray(self._tensors[_published(name)], np.float32)

    def rotary_factors(self) -> Floats | None:
        """(head_dim / 2,) float32 by which each frequency is divided; None is all ones.

        Source: the scaling of Llama 3.1, as Meta publishes it with the model.
        """
        scaling = self._rotary()
        if scaling.get("rope_type", scaling.get("type", "default")) == "default":
            return None
        factor, low, high = (
            float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        length = float(scaling["original_max_position_embeddings"])
        half = np.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        turns = length / (2 * math.pi * self.shape.rotary_base**half)
        # Fast frequencies stay, slow ones are stretched, between them it goes over smoothly.
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - kept) / factor + kept)).astype(np.float32)

    def kinds(self) -> Mapping[str, int]:
        """How many tensors are stored as which type."""
        return self._tensors.kinds()

    def _open(self) -> Safetensors:
        names = {_WEIGHTS}
        if (self.path / _INDEX).is_file():
            names = set(_json(self.path / _INDEX).get("weight_map", {}).values())
        # A name with a folder in it would lead out of this one.
        paths = [self.path / Path(str(name)).name for name in sorted(names)]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise WeightsBroken(self.path, f"{missing[0]} is missing")
        try:
            return Safetensors(paths)
        except SafetensorsBroken as error:
            raise WeightsBroken(error.path, error.why) from error

    def _rotary(self) -> dict[str, Any]:
        """What is said of positions; older and newer files say it in different places."""
        found = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return found if isinstance(found, dict) else {}

    def _shape(self) -> Shape:
        config = self.config
        architecture = config.get("model_type")
        if architecture not in ARCHITECTURES:
            raise NotConvertible(self.path, f"architecture {architecture!r}")
        if config.get("quantization_config"):
            raise NotConvertible(self.path, "its weights are quantised already, take the 16-bit ones")
        if config.get("use_sliding_window"):
            raise NotConvertible(self.path, "its attention looks through a sliding window")
        kind = self._rotary().get("rope_type", self._rotary().get("type", "default"))
        if kind not in ("default", "llama3"):
            raise NotConvertible(self.path, f"positions scaled in a way named {kind!r}")

        def number(name: str, default: float | None = None) -> float:
            value = config.get(name)
            value = default if value is None else value
            if not isinstance(value, int | float) or value <= 0:
                raise NotConvertible(self.path, f"config.json lacks {name}")
            return float(value)

        hidden, heads = int(number("hidden_size")), int(number("num_attention_heads"))
        return Shape(
            architecture=architecture,
            layer_count=int(number("num_hidden_layers")),
            head_count=heads,
            kv_head_count=int(number("num_key_value_heads", heads)),
            hidden=hidden,
            feed_forward=int(number("intermediate_size")),
            head_dim=int(number("head_dim", hidden // heads)),
            vocabulary=int(number("vocab_size")),
            context=int(number("max_position_embeddings")),
            norm_epsilon=number("rms_norm_eps"),
            rotary_base=float(self._rotary().get("rope_theta") or number("rope_theta", 10_000.0)),
            tied=not self.has("output.weight"),
        )


def folder_tokens(weights: FolderWeights) -> Tokens:
    """The tokeniser beside the weights.

    Raises:
        WeightsBroken: it is missing or damaged. NotConvertible: no token is said to end an answer.
    """
    folder = weights.path
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no class of its own
        raise WeightsBroken(folder, "tokenizer.json is missing or damaged") from error
    about = _json(folder / "tokenizer_config.json", optional=True)
    generation = _json(folder / "generation_config.json", optional=True)
    ends = {
        int(number)
        for said in (generation.get("eos_token_id"), weights.config.get("eos_token_id"))
        for number in (said if isinstance(said, list) else [said])
        if number is not None
    }
    if (end := tokenizer.token_to_id(_said(about.get("eos_token")))) is not None:
        ends.add(end)
    if not ends:
        raise NotConvertible(folder, "nothing says which token ends an answer")
    begin = tokenizer.token_to_id(_said(about.get("bos_token")))
    template = about.get("chat_template")
    if template is None and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokens(
        tokenizer,
        begin if about.get("add_bos_token", False) else None,
        tuple(sorted(ends | turn_ends_of(tokenizer.get_vocab()))),
        template if isinstance(template, str) else "",
    )


def _published(name: str) -> str:
    """The name in the folder for one of GGUF's: `blk.3.attn_q` is `model.layers.3.self_attn.q_proj`."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_OF_LAYER[part]}.{kind}"


def _said(token: object) -> str:
    """A token's text; some files wrap it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise WeightsBroken(path, "the file is missing") from error
    except (OSError, ValueError) as error:
        raise WeightsBroken(path, "the file cannot be read as JSON") from error
    if not isinstance(found, dict):
        raise WeightsBroken(path, "the file holds no JSON object")
    return found

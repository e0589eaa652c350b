"""A tiny random BERT with its tokenizer, as a published encoder lies in its folder."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.tiny_llm import write_safetensors

Floats = NDArray[np.floating]
D, HEADS, INNER, LAYERS, VOCABULARY = 8, 2, 16, 2, 20
EPSILON = 1e-12
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop")


def weights() -> dict[str, Floats]:
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{k}_embeddings.weight": (n, D)
        for k, n in (("word", VOCABULARY), ("position", 12), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        sizes: dict[str, tuple[int, ...]] = {f"attention.self.{k}": (D, D) for k in ("query", "key", "value")}
        sizes |= {
            "attention.output.dense": (D, D),
            "intermediate.dense": (INNER, D),
            "output.dense": (D, INNER),
        }
        for name, size in sizes.items():
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[:1]}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}


def write(folder: Path, weights: dict[str, Floats], **changed: object) -> None:
    write_safetensors(folder / "model.safetensors", weights)
    config: dict[str, object] = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": LAYERS,
        "hidden_size": D,
    }
    config |= {"num_attention_heads": HEADS, "layer_norm_eps": EPSILON} | changed
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> None:
    """One token a word of one letter."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

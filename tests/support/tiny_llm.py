"""Tiny random decoders as GGUF files, and what they compute by the formulas alone.

Sources: Touvron et al. 2023 (Llama), Su et al. 2021 (rotary positions), Ainslie et al. 2023 (grouped
queries).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import Tokenizer, models

WORDS = [
    "<|begin|>",
    "<|im_end|>",
    "<think>",
    *(chr(letter) for letter in range(ord("a"), ord("z") + 1)),
    "ab",
    "cd",
]
BEGIN, END = 0, 1
_CONTROL, _NORMAL = 3, 1


@dataclass
class TinyLlm:
    """A model of random weights; rows of query and key in the papers' order."""

    architecture: str = "llama"
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    feed_forward: int = 96
    vocabulary: int = 96
    tied: bool = True
    rotary_base: float = 10_000.0
    rotary_factors: bool = False
    epsilon: float = 1e-5
    seed: int = 1
    context: int = 256
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        hidden = self.hidden
        width, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim

        def matrix(rows: int, columns: int) -> np.ndarray:
            return (draw.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

        def near_one(size: int) -> np.ndarray:
            return (1 + 0.2 * draw.standard_normal(size)).astype(np.float32)

        t = self.tensors
        t["token_embd.weight"] = (3 * matrix(self.vocabulary, hidden)).astype(np.float32)
        t["output_norm.weight"] = near_one(hidden)
        if not self.tied:
            t["output.weight"] = matrix(self.vocabulary, hidden)
        if self.rotary_factors:
            t["rope_freqs.weight"] = draw.uniform(1, 8, self.head_dim // 2).astype(np.float32)
        for layer in range(self.layers):
            at = f"blk.{layer}."
            t[f"{at}attn_norm.weight"], t[f"{at}ffn_norm.weight"] = near_one(hidden), near_one(hidden)
            for name, rows in (("q", width), ("k", kv), ("v", kv)):
                t[f"{at}attn_{name}.weight"] = 2 * matrix(rows, hidden)
                if self.architecture == "qwen2":
                    t[f"{at}attn_{name}.bias"] = draw.standard_normal(rows).astype(np.float32)
            t[f"{at}attn_output.weight"] = matrix(hidden, width)
            t[f"{at}ffn_gate.weight"] = matrix(self.feed_forward, hidden)
            t[f"{at}ffn_up.weight"] = matrix(self.feed_forward, hidden)
            t[f"{at}ffn_down.weight"] = matrix(hidden, self.feed_forward)

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim

    # -- as a file -----------------------------------------------------------------------------------------

    def write(
        self,
        path: Path,
        quantisation: GGMLQuantizationType | None = None,
        *,
        leave_out: str = "",
        cut: str = "smollm",
        kind: str = "gpt2",
    ) -> Path:
        """Write it as llama.cpp would; matrices quantised where their width allows."""
        writer, name = GGUFWriter(path, self.architecture), self.architecture
        writer.add_block_count(self.layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_rope_freq_base(self.rotary_base)
        assert name in ("llama", "qwen2")
        words = [*WORDS, *(f"word{number}" for number in range(len(WORDS), self.vocabulary))]
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(cut)
        writer.add_token_list(words)
        writer.add_token_types([_CONTROL if number < 2 else _NORMAL for number in range(self.vocabulary)])
        writer.add_token_merges(["a b", "c d"])
        writer.add_bos_token_id(BEGIN)
        writer.add_eos_token_id(END)
        for tensor, values in self.tensors.items():
            if tensor == leave_out:
                continue
            stored = self._as_stored(tensor, values)
            if quantisation is None or stored.ndim == 1:
                writer.add_tensor(tensor, stored)
            else:
                writer.add_tensor(tensor, quantize(stored, quantisation), raw_dtype=quantisation)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def write_folder(self, path: Path, kind: str = "F32", *, leave_out: str = "", **config: object) -> Path:
        """Write it as Hugging Face publishes it, its weights in two files."""
        path.mkdir()
        parts: list[dict[str, np.ndarray]] = [{}, {}]
        for number, (name, values) in enumerate(self.tensors.items()):
            if name not in (leave_out, "rope_freqs.weight"):
                parts[number % 2][_published(name)] = values
        where = {}
        for number, part in enumerate(parts):
            file = path / f"model-{number}.safetensors"
            write_safetensors(file, part, kind)
            where |= dict.fromkeys(part, file.name)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        about: dict[str, object] = {
            "model_type": self.architecture,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.rotary_base,
            "eos_token_id": END,
        }
        (path / "config.json").write_text(json.dumps(about | config))
        vocabulary = {word: number for number, word in enumerate(WORDS)}
        tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "d")]))
        tokenizer.add_special_tokens(WORDS[:2])
        tokenizer.save(str(path / "tokenizer.json"))
        said = {"bos_token": {"content": WORDS[BEGIN]}, "add_bos_token": True, "chat_template": "{{ x }}"}
        (path / "tokenizer_config.json").write_text(json.dumps(said))
        return path

    def _as_stored(self, name: str, values: np.ndarray) -> np.ndarray:
        """Llama's query and key rows are stored pair by pair."""
        if self.architecture != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
            return values
        heads = self.heads if "attn_q" in name else self.kv_heads
        halves = values.reshape(heads, 2, self.head_dim // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))

    # -- by the formulas -----------------------------------------------------------------------------------

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(n, vocabulary) float64: after each token, given those before it."""
        t = {name: values.astype(np.float64) for name, values in self.tensors.items()}
        hidden = t["token_embd.weight"][tokens]
        for layer in range(self.layers):
            at = f"blk.{layer}."
            hidden = hidden + self._attention(t, at, self._norm(hidden, t[f"{at}attn_norm.weight"]))
            normed = self._norm(hidden, t[f"{at}ffn_norm.weight"])
            gate = normed @ t[f"{at}ffn_gate.weight"].T
            up = normed @ t[f"{at}ffn_up.weight"].T
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ t[f"{at}ffn_down.weight"].T
        last = self._norm(hidden, t["output_norm.weight"])
        return last @ (t["token_embd.weight"] if self.tied else t["output.weight"]).T

    def _norm(self, hidden: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + self.epsilon) * weight

    def _attention(self, t: dict[str, np.ndarray], at: str, hidden: np.ndarray) -> np.ndarray:
        count = len(hidden)

        def project(name: str, heads: int) -> np.ndarray:
            made = hidden @ t[f"{at}attn_{name}.weight"].T + t.get(f"{at}attn_{name}.bias", 0.0)
            return made.reshape(count, heads, self.head_dim)

        query, key = self._rotated(project("q", self.heads)), self._rotated(project("k", self.kv_heads))
        value, made = project("v", self.kv_heads), []
        for head in range(self.heads):
            shared = head * self.kv_heads // self.heads
            score = query[:, head] @ key[:, shared].T / self.head_dim**0.5
            score[np.triu_indices(count, 1)] = -np.inf
            weight = np.exp(score - score.max(-1, keepdims=True))
            made.append(weight / weight.sum(-1, keepdims=True) @ value[:, shared])
        return np.concatenate(made, -1) @ t[f"{at}attn_output.weight"].T

    def _rotated(self, values: np.ndarray) -> np.ndarray:
        half = self.head_dim // 2
        frequency = self.rotary_base ** (-np.arange(half) / half)
        if self.rotary_factors:
            frequency = frequency / self.tensors["rope_freqs.weight"]
        angle = np.arange(len(values))[:, None, None] * frequency
        one, other = values[..., :half], values[..., half:]
        turned = [one * np.cos(angle) - other * np.sin(angle), other * np.cos(angle) + one * np.sin(angle)]
        return np.concatenate(turned, -1)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], kind: str = "F32") -> None:
    """Float32 arrays as a file of this type."""
    header: dict[str, object] = {}
    data = b""
    for name, values in tensors.items():
        values = np.ascontiguousarray(values, np.float32)
        if kind == "BF16":
            raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _published(name: str) -> str:
    """As a folder names what GGUF names so."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    if name == "output.weight":
        return "lm_head.weight"
    _, layer, part, kind = name.split(".")
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    parts |= {f"attn_{which}": f"self_attn.{which}_proj" for which in "qkv"} | {
        "attn_output": "self_attn.o_proj"
    }
    parts |= {f"ffn_{which}": f"mlp.{which}_proj" for which in ("gate", "up", "down")}
    return f"model.layers.{layer}.{parts[part]}.{kind}"

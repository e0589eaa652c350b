"""The tokeniser that a GGUF file describes, as a `tokenizer.json` that the `tokenizers` library reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from infra.llm.errors import NotConvertible

# Types of a token in GGUF: steers the model; added by whoever trained it.
_CONTROL, _USER_DEFINED = 3, 4

# How text is cut before pairs of bytes are merged, by the name that GGUF gives it. Source: the tokenisers
# that are published with Meta-Llama-3-8B and Qwen2-7B.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "deepseek-r1-llama": _LLAMA_3,
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _QWEN_2,
}
# Whole tokens are taken as they are, without asking how pairs would have made them.
_IGNORES_MERGES = frozenset({"llama-bpe", "llama3", "deepseek-r1-llama"})


class Head(Protocol):
    """What the file's head says; see `infra.llm.weights.GgufWeights`."""

    path: Any

    def field(self, name: str, default: Any = None) -> Any: ...  # noqa: D102 - said there


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokeniser and the tokens that steer the model.

    begin: before a text; None where the model wants none. ends: each ends an answer.
    """

    tokenizer: Tokenizer
    begin: int | None
    ends: tuple[int, ...]
    chat_template: str


def tokens_of(head: Head) -> Tokens:
    """The tokeniser of a file.

    Raises:
        NotConvertible: another kind of tokeniser, or another way to cut text.
    """
    kind, cut = head.field("tokenizer.ggml.model"), head.field("tokenizer.ggml.pre", "")
    if kind != "gpt2":
        raise NotConvertible(head.path, f"a tokeniser of kind {kind!r}")
    names: list[str] = head.field("tokenizer.ggml.tokens")
    types: list[int] = head.field("tokenizer.ggml.token_type", [])
    merges = [tuple(merge.split(" ", 1)) for merge in head.field("tokenizer.ggml.merges", [])]
    vocabulary = {name: number for number, name in enumerate(names)}
    try:
        pairs = models.BPE(vocabulary, merges, ignore_merges=cut in _IGNORES_MERGES)
    except Exception as error:  # the library raises no class of its own
        raise NotConvertible(head.path, "its merges make tokens that it does not have") from error
    tokenizer = Tokenizer(pairs)
    tokenizer.pre_tokenizer = _cutter(head, cut)
    tokenizer.decoder = decoders.ByteLevel()
    steering = [name for name, kind in zip(names, types, strict=False) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in steering])
    added = [name for name, kind in zip(names, types, strict=False) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    begin, end = (head.field(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos"))
    if end is None:
        raise NotConvertible(head.path, "the head lacks the token that ends an answer")
    return Tokens(
        tokenizer,
        int(begin) if begin is not None and head.field("tokenizer.ggml.add_bos_token", False) else None,
        tuple(sorted({int(end)} | turn_ends_of(vocabulary))),
        head.field("tokenizer.chat_template", ""),
    )


def turn_ends_of(vocabulary: Mapping[str, int]) -> set[int]:
    """The tokens that end a turn of a conversation, whatever the file calls the end of a text."""
    return {vocabulary[name] for name in ("<|im_end|>", "<|eot_id|>") if name in vocabulary}


def _cutter(head: Head, cut: str) -> pre_tokenizers.PreTokenizer:
    if cut == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if cut not in _PATTERNS:
        raise NotConvertible(head.path, f"text is cut in a way named {cut!r}, which is not known here")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[cut]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

"""onnxruntime-genai over a converted model, alone in a process: one batch of prompts after the other.

PYTHON bench/peers/genai.py FOLDER THREADS

Needs onnxruntime-genai (MIT) and nothing of this project, so that it may live in an environment of its own.
Reads a line of JSON a batch, {"prompts": [[token, ...], ...], "tokens_max": n}, and answers with one: each
prompt's tokens, the seconds in all and those to the first token.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai


def config(about: dict[str, Any], threads: int) -> dict[str, Any]:
    """The model's description as onnxruntime-genai reads it, from what the converter wrote."""
    shape, ends = about["shape"], about["ends"]
    names = {
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": shape["architecture"],
            "bos_token_id": ends[0] if about["begin"] is None else about["begin"],
            "eos_token_id": ends,
            "pad_token_id": ends[0],
            "context_length": about["context"],
            "vocab_size": shape["vocabulary"],
            "decoder": {
                "session_options": {"provider_options": [], "intra_op_num_threads": threads},
                "filename": "model.onnx",
                "head_size": shape["head_dim"],
                "hidden_size": shape["hidden"],
                "num_attention_heads": shape["head_count"],
                "num_key_value_heads": shape["kv_head_count"],
                "num_hidden_layers": shape["layer_count"],
                **names,
            },
        },
        # Keys and values stay in one buffer, as the graph wants it.
        "search": {
            "max_length": about["context"],
            "past_present_share_buffer": True,
            "do_sample": False,
            "num_beams": 1,
        },
    }


def answer(
    model: genai.Model, prompts: list[list[int]], tokens_max: int, ends: frozenset[int]
) -> dict[str, Any]:
    """What follows each prompt, up to its end. The prompts are of one length: nothing is padded."""
    length = len(prompts[0])
    began = time.perf_counter()
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length + tokens_max, batch_size=len(prompts))
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompts, np.int32))
    generator.generate_next_token()
    first_s = time.perf_counter() - began
    while not generator.is_done():
        generator.generate_next_token()
    seconds = time.perf_counter() - began
    found = []
    for row in range(len(prompts)):
        tokens = [int(token) for token in generator.get_sequence(row)[length:]]
        # A row that has ended is filled up until the last one has.
        end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        found.append(tokens[:end])
    return {"tokens": found, "seconds": seconds, "first_s": first_s}


def main() -> None:
    """Load the model, say the version, then answer each line."""
    source, threads = Path(sys.argv[1]), int(sys.argv[2])
    about = json.loads((source / "llm.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("model.onnx", "model.onnx.data"):
            (folder / file).symlink_to((source / file).resolve())
        (folder / "genai_config.json").write_text(json.dumps(config(about, threads)), encoding="utf-8")
        model = genai.Model(str(folder))
        print(json.dumps({"version": genai.__version__}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            found = answer(model, asked["prompts"], asked["tokens_max"], frozenset(about["ends"]))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

"""Sentence encoders of the BERT kind, from safetensors to ONNX without torch."""

from infra.encoder.convert import BertShape, EncoderNotConvertible, convert, read_safetensors, to_model

__all__ = ["BertShape", "EncoderNotConvertible", "convert", "read_safetensors", "to_model"]

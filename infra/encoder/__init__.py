"""Sentence encoders of the BERT kind, to ONNX without torch."""

from infra.encoder.convert import convert, read_folder, to_model
from infra.encoder.errors import EncoderNotConvertible
from infra.encoder.packed import read_packed
from infra.encoder.weights import BertShape, Encoder

__all__ = [
    "BertShape",
    "Encoder",
    "EncoderNotConvertible",
    "convert",
    "read_folder",
    "read_packed",
    "to_model",
]

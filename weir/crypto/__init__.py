"""Envelopes, pseudonyms and the keys behind them."""

from weir.crypto.envelope import (
    HEADER_NAME,
    Opener,
    Sealer,
    UnknownKey,
    envelope_header,
    envelope_headers,
    parse_envelope_header,
)
from weir.crypto.pseudonym import Pseudonymizer
from weir.crypto.secret import Compartment, DataKey, Secret, Suite

__all__ = [
    "HEADER_NAME",
    "Compartment",
    "DataKey",
    "Opener",
    "Pseudonymizer",
    "Sealer",
    "Secret",
    "Suite",
    "UnknownKey",
    "envelope_header",
    "envelope_headers",
    "parse_envelope_header",
]

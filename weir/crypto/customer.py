"""A key for each customer, so that what is kept of one opens for no other."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weir.crypto.pseudonym import Pseudonymizer
from weir.errors import IntegrityError

_INFO = b"weir.customer-key.v1\0"
_KEY_BYTES, _NONCE_BYTES = 32, 12


class CustomerKeys:
    """Seals and opens by AES-256-GCM under a key that is derived for one customer (HKDF-SHA-256, RFC 5869).

    The keys are derived from the tenant's secret when they are needed and are kept nowhere. They stand within
    the topic's own seal: whoever opens the topic alone still reads nothing.
    """

    def __init__(self, pseudonymizer: Pseudonymizer) -> None:
        """pseudonymizer: of the tenant; its secret comes from the key service and does not rotate."""
        self._pseudonymizer = pseudonymizer

    def seal(self, customer_id: str, plaintext: bytes, context: bytes) -> bytes:
        """nonce ‖ ciphertext ‖ tag; opens for this customer and in this context alone."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher(customer_id).encrypt(nonce, plaintext, context)

    def open(self, customer_id: str, sealed: bytes, context: bytes) -> bytes:
        """The plaintext.

        Raises:
            IntegrityError: sealed for another customer or context, or changed.
        """
        try:
            return self._cipher(customer_id).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise IntegrityError("A customer's values were sealed for another, or changed.") from error

    def _cipher(self, customer_id: str) -> AESGCM:
        return AESGCM(self._pseudonymizer.derive(_INFO + customer_id.encode(), _KEY_BYTES))

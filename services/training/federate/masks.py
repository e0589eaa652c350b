"""Secure aggregation: what a bank sends is noise, the sum of what all send is exact.

Every two banks agree on a key and add its stream with opposite signs, so those streams vanish in the sum;
each adds a stream of its own besides. Seeds are shared out so that enough banks together can take off what
those who dropped out left behind, and of each bank's two secrets of a round only one is ever told. Both are
new in each round: else the key of a bank that is lost would open the rounds in which it had sent.

Sums are of 64-bit integers modulo 2**64, fixed point with 24 bits behind the point: no rounding in the sum.

Source: Bonawitz et al. 2017, Practical secure aggregation for privacy-preserving machine learning, for a
server that is curious but keeps to the protocol (section 6.1; its signed keys for one that does not are not
here). Shamir 1979, How to share a secret. X25519: RFC 7748; HKDF: RFC 5869; ChaCha20-Poly1305: RFC 8439.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from services.training.additive import Floats
from services.training.federate.errors import UpdateRefused

Words = NDArray[np.uint64]

SCALE = 2.0**24
LIMIT = 2.0**36  # of one bank's number; a hundred banks' sum then stays below 2**63
SECRET_BYTES = 32
_PRIME = 2**521 - 1
_SHARE_BYTES = 66


def to_words(values: Floats) -> Words:
    """Fixed point, (n,) uint64, two's complement.

    Raises:
        UpdateRefused: a number is not finite, or 2**36 or more.
    """
    if not (np.abs(values) < LIMIT).all():
        raise UpdateRefused("An update holds a number that is not finite or far too large. Check the data.")
    return np.rint(values * SCALE).astype(np.int64).view(np.uint64)


def from_words(words: Words) -> Floats:
    """The numbers behind a sum of fixed-point words, (n,) float64."""
    return words.view(np.int64).astype(np.float64) / SCALE


def new_key() -> tuple[bytes, bytes]:
    """A private and a public X25519 key, 32 bytes each."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, purpose: str) -> bytes:
    """The 32 bytes that two banks alone know, from one's private and the other's public key."""
    secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), SECRET_BYTES, None, f"weir federate {purpose}".encode()).derive(secret)


def stream(seed: bytes, count: int) -> Words:
    """(count,) uint64 that nobody tells from noise without the seed: ChaCha20's key stream."""
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * count)), "<u8").astype(np.uint64)


def masked(
    words: Words, me: int, private: bytes, publics: Mapping[int, bytes], own: bytes, purpose: str
) -> Words:
    """The words under this bank's own stream and one for each other bank of the round.

    Args:
        publics: mask keys of all banks of the round, by number; this bank's own is passed over.
        own: the seed of this bank's own stream, new each round.
        purpose: names run and round, so that no stream is used twice.
    """
    out = words + stream(own, len(words))
    for other, public in publics.items():
        if other != me:
            noise = stream(agreed(private, public, purpose), len(words))
            out = out + noise if me < other else out - noise
    return out


def unmasked(
    received: Mapping[int, Words],
    own_seeds: Mapping[int, bytes],
    lost_keys: Mapping[int, bytes],
    publics: Mapping[int, bytes],
    purpose: str,
) -> Words:
    """The exact sum of the words of those who sent.

    Args:
        received: masked words by bank. own_seeds: of the same banks.
        lost_keys: private mask keys of those who belonged to the round and sent nothing.
        publics: mask keys of all banks of the round.
    """
    size = len(next(iter(received.values())))
    total = np.zeros(size, np.uint64)
    for bank, words in received.items():
        total = total + words - stream(own_seeds[bank], size)
        for lost, private in lost_keys.items():
            noise = stream(agreed(private, publics[bank], purpose), size)
            total = total - noise if bank < lost else total + noise
    return total


def shared(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """A share of 66 bytes for each holder (numbers from 1); any `threshold` of them give the secret back."""
    terms = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    return {
        holder: (
            sum(term * pow(holder, power, _PRIME) for power, term in enumerate(terms)) % _PRIME
        ).to_bytes(_SHARE_BYTES, "big")
        for holder in holders
    }


def joined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of 32 bytes.

    Raises:
        UpdateRefused: too few shares, or they do not belong together.
    """
    chosen: Sequence[tuple[int, int]] = [
        (holder, int.from_bytes(share, "big")) for holder, share in sorted(shares.items())[:threshold]
    ]
    if len(chosen) < threshold:
        raise UpdateRefused(f"{len(chosen)} banks are left to take off a mask, {threshold} are needed.")
    total = 0
    for holder, share in chosen:
        above = below = 1
        for other, _ in chosen:
            if other != holder:
                above = above * -other % _PRIME
                below = below * (holder - other) % _PRIME
        total += share * above * pow(below, -1, _PRIME)
    try:
        return (total % _PRIME).to_bytes(SECRET_BYTES, "big")
    except OverflowError:
        raise UpdateRefused("Shares of a mask do not belong together: a bank sent another's.") from None


def sealed(secret: bytes, private: bytes, public: bytes, about: str) -> bytes:
    """`secret` for the holder of the public key's other half alone, bound to the words of `about`."""
    nonce = secrets.token_bytes(12)
    box = ChaCha20Poly1305(agreed(private, public, "seal"))
    return nonce + box.encrypt(nonce, secret, about.encode())


def opened(box: bytes, private: bytes, public: bytes, about: str) -> bytes:
    """What `sealed` took.

    Raises:
        UpdateRefused: it was made for another, by another, or about something else.
    """
    try:
        return ChaCha20Poly1305(agreed(private, public, "seal")).decrypt(box[:12], box[12:], about.encode())
    except InvalidTag:
        raise UpdateRefused("A share of a mask was not sealed for this bank and round.") from None

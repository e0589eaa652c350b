"""What keys are: a compartment, a suite, and material that no text shows."""

import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn


class Suite(IntEnum):
    """The cipher of a data key; the numbers are those of `protos/weir/keys/v1/keys.proto`."""

    AES_256_GCM = 1
    SM4_GCM = 2

    @property
    def key_bytes(self) -> int:
        """Length of this suite's key material."""
        return 32 if self is Suite.AES_256_GCM else 16


@dataclass(frozen=True, slots=True, order=True)
class Compartment:
    """What one chain of data keys protects: a topic's records of one data class (C1, C2 or C3)."""

    topic: str
    data_class: str

    def __str__(self) -> str:
        return f"{self.topic}/{self.data_class}"


class Secret:
    """Key material. Its text never shows it, it does not pickle, and `wipe` overwrites it.

    Python may have copied the bytes before they came here (a gRPC message, OpenSSL's own key
    schedule); `wipe` clears the copy that this object owns.
    """

    __slots__ = ("_material",)

    def __init__(self, material: bytes | bytearray) -> None:
        self._material = bytearray(material)

    def reveal(self) -> bytearray:
        """The material itself, not a copy: keep no reference. Grep for this word to see who reads keys."""
        return self._material

    def wipe(self) -> None:
        """Overwrite the material with zeros and forget it."""
        self._material[:] = bytes(len(self._material))
        del self._material[:]

    def __len__(self) -> int:
        return len(self._material)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._material, other._material)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret({len(self._material)} bytes)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret does not pickle")


@dataclass(frozen=True, slots=True)
class DataKey:
    """One data key: seals and opens the records of its compartment."""

    key_id: int
    compartment: Compartment
    epoch: int
    suite: Suite
    secret: Secret

    def __post_init__(self) -> None:
        if not 0 <= self.key_id <= 0xFFFFFFFF:
            raise ValueError("key_id must fit 32 bits")
        if len(self.secret) != self.suite.key_bytes:
            raise ValueError(f"{self.suite.name} needs {self.suite.key_bytes} bytes of key material")


@dataclass(frozen=True, slots=True)
class DataKeyInfo:
    """A data key without its material."""

    key_id: int
    compartment: Compartment
    epoch: int
    suite: Suite
    created_ms: int
    kek_id: str
    current: bool

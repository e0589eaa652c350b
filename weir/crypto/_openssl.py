"""The OpenSSL that Python's own `ssl` is linked with, where it can be reached: AES-256-GCM by address.

`weir.crypto.columns` calls it from a compiled loop, with no Python object a record. Where there is no such
library (an interpreter that has OpenSSL built in), `gcm_context` says None and `cryptography` serves alone.
The calls are those of OpenSSL 1.1.1 and later: https://docs.openssl.org/3.0/man3/EVP_EncryptInit/
"""

import ctypes
import functools
import importlib.util
import weakref
from dataclasses import dataclass
from typing import Any

from weir.crypto.secret import DataKey, Suite

_KEY_BYTES = 32


@dataclass(frozen=True)
class Functions:
    """Addresses of EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_EncryptFinal_ex and EVP_CIPHER_CTX_ctrl."""

    init: int
    update: int
    final: int
    control: int


@dataclass(frozen=True)
class _Library:
    functions: Functions
    new: Any
    free: Any
    cipher: Any
    init: Any


@functools.cache
def _library() -> _Library | None:
    spec = importlib.util.find_spec("_ssl")
    try:
        # A name that is asked of the module is looked for in the libraries that it is linked with, too.
        handle = ctypes.CDLL(spec.origin if spec is not None and spec.origin is not None else "")
        new, free, cipher = handle.EVP_CIPHER_CTX_new, handle.EVP_CIPHER_CTX_free, handle.EVP_aes_256_gcm
        init = handle.EVP_EncryptInit_ex
        others = (handle.EVP_EncryptUpdate, handle.EVP_EncryptFinal_ex, handle.EVP_CIPHER_CTX_ctrl)
    except (OSError, AttributeError):
        return None
    new.restype = cipher.restype = ctypes.c_void_p
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    init.restype, init.argtypes = ctypes.c_int, [ctypes.c_void_p] * 5
    addresses = [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in (init, *others)]
    return _Library(Functions(*addresses), new, free, cipher, init)


class GcmContext:
    """One key's cipher in OpenSSL, good for one thread at a time; OpenSSL wipes it when it is freed."""

    def __init__(self, library: _Library, key: bytes | bytearray) -> None:
        """Raises ValueError when OpenSSL refuses."""
        self.functions = library.functions
        self.address: int = library.new()
        if not self.address:
            raise MemoryError("OpenSSL has no memory for a cipher")
        weakref.finalize(self, library.free, self.address)
        material = (ctypes.c_ubyte * _KEY_BYTES).from_buffer_copy(key)
        try:
            ready = library.init(self.address, library.cipher(), None, ctypes.addressof(material), None)
        finally:
            ctypes.memset(material, 0, _KEY_BYTES)
        if ready != 1:
            raise ValueError("OpenSSL refused a key of AES-256-GCM")


def gcm_context(key: DataKey) -> GcmContext | None:
    """The key's cipher; None when the suite is another, or this Python has no OpenSSL to call."""
    library = _library()
    if key.suite is not Suite.AES_256_GCM or library is None:
        return None
    return GcmContext(library, key.secret.reveal())

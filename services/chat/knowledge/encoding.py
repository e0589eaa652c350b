"""The encoder that the settings name, served by Triton, as questions and passages ask it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.chat.domain import Encoder, Encoders
from services.chat.knowledge.settings import KnowledgeSettings
from weir.config import TritonSettings
from weir.errors import ConfigError
from weir.inference.encoder import TritonEncoder

# Beside the tokenizer; `infra.encoder.repository` writes it.
MARKS = "marks.json"


class _Marks(msgspec.Struct, frozen=True):
    """What an encoder was trained to find before a text."""

    asked: str = ""
    passage: str = ""


@dataclass(frozen=True, slots=True)
class _Marked:
    encoder: Encoder
    mark: str

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encoder`."""
        return await self.encoder([self.mark + text for text in texts])


def marked(encoder: Encoder, tokenizer: Path) -> Encoders:
    """With the marks that lie beside the tokenizer; without such a file there are none.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = tokenizer.with_name(MARKS)
    try:
        marks = msgspec.json.decode(path.read_bytes(), type=_Marks)
    except FileNotFoundError:
        marks = _Marks()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}. Correct it, or run `make setup`.") from error
    return Encoders(_Marked(encoder, marks.asked), _Marked(encoder, marks.passage))


@asynccontextmanager
async def opened(settings: KnowledgeSettings, triton: TritonSettings) -> AsyncIterator[Encoders | None]:
    """The encoder, connected; None where knowledge is searched by words alone.

    Raises:
        ConfigError: an encoder without its tokenizer. MissingPart: there is none at the path.
    """
    if not settings.encoder:
        yield None
        return
    if settings.encoder_tokenizer is None:
        raise ConfigError("[knowledge] encoder needs encoder_tokenizer. Set it, or leave encoder empty.")
    async with TritonEncoder(triton, settings.encoder_model, settings.encoder_tokenizer) as encoder:
        yield marked(encoder, settings.encoder_tokenizer)

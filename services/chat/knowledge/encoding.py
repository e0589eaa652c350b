"""The encoder that the settings name, served by Triton."""

from services.chat.knowledge.settings import KnowledgeSettings
from weir.config import TritonSettings
from weir.errors import ConfigError
from weir.inference.encoder import TritonEncoder


def encoder_of(settings: KnowledgeSettings, triton: TritonSettings) -> TritonEncoder | None:
    """None where knowledge is searched by words alone.

    Raises:
        ConfigError: an encoder without its tokenizer. MissingPart: there is none at the path.
    """
    if not settings.encoder:
        return None
    if settings.encoder_tokenizer is None:
        raise ConfigError("[knowledge] encoder needs encoder_tokenizer. Set it, or leave encoder empty.")
    return TritonEncoder(triton, settings.encoder_model, settings.encoder_tokenizer)

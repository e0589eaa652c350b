"""Where the bank's knowledge lies and how it is searched."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr

from weir.config import WeirSettings


class KnowledgeSettings(WeirSettings):
    """[knowledge] or WEIR_KNOWLEDGE_*."""

    section: ClassVar[str] = "knowledge"

    folder: Path = Field(Path(".weir/knowledge"), description="the versions, and which one is in use")
    database_url: SecretStr | None = Field(
        None,
        description="postgresql://user:password@host:5432/database, with pgvector, in the folder's place; "
        "best in WEIR_KNOWLEDGE_DATABASE_URL",
    )
    database_ca: Path | None = Field(
        None, description="whom to believe; without it the connection has no TLS"
    )
    passage_chars_max: int = Field(
        700, ge=100, le=4000, description="a passage's size; a Chinese character counts as two"
    )
    file_bytes_max: int = Field(
        20_000_000, ge=1000, le=1_000_000_000, description="a larger document is refused"
    )
    documents_max: int = Field(10_000, ge=1, description="more documents in one folder are refused")
    passages_max: int = Field(200_000, ge=1, description="more passages in one version are refused")
    duplicate_share: float = Field(
        0.8, gt=0, le=1, description="shared three-word runs from which two passages count as near duplicates"
    )
    encoder: str = Field(
        "",
        description="what makes the vectors, such as multilingual-e5-small; empty searches by words alone",
    )
    encoder_model: str = Field("encoder", min_length=1, description="its name on Triton")
    encoder_tokenizer: Path | None = Field(None, description="its tokenizer.json")
    relevance_min: float | None = Field(
        None, ge=0, le=1, description="under it nothing is found; none takes the fitted threshold"
    )

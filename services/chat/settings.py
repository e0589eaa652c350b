"""What the chat service can be told; `[chat]` in weir.toml, or WEIR_CHAT_* in the environment."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.chat.guards import rules
from services.chat.tools import asked
from services.chat.turn import texts
from services.chat.understanding import intents, words
from weir.config import Port, WeirSettings


class ChatSettings(WeirSettings):
    """Read once, at start."""

    section: ClassVar[str] = "chat"

    tenant: str = Field("default", min_length=1, max_length=64, description="stands in every reply id")
    group: str = Field("weir-chat", min_length=1, description="the consumer group")
    texts: Path = Field(texts.DEFAULT, description="what the service says in its own words, reviewed")
    tool_words: Path = Field(asked.DEFAULT, description="by which words a tool is asked for")
    guard_rules: Path = Field(rules.DEFAULT, description="what reaches neither a model nor a customer")
    words: Path = Field(words.DEFAULT_TABLE, description="words that make a message urgent or tell its mood")
    public_numbers: list[str] = Field(
        [], description="the bank's own telephone numbers, which are nobody's personal data"
    )
    text_chars_max: int = Field(
        4_000, ge=100, le=100_000, description="of a message; a longer one is not read"
    )
    messages_per_minute_max: int = Field(12, ge=1, le=99, description="of one conversation")
    turn_deadline_s: float = Field(25.0, gt=0, le=300, description="for one answer; then a person takes over")
    turns_max: int = Field(32, ge=1, le=10_000, description="answered at once; more wait")
    intent_model: str = Field("", description="the intents' head on Triton; empty leaves intents open")
    intent_repository: Path = Field(
        intents.SHIPPED, description="where its model.json stands: labels, threshold, checksum"
    )
    generate: bool = Field(
        False, description="let the language model write; else answers are the passages' own sentences"
    )
    model: str = Field("llm", min_length=1, description="the language model's name on Triton")
    template: str = Field(
        "chatml", pattern="^(chatml|llama3|deepseek)$", description="chatml, llama3 or deepseek"
    )
    prompt_tokens_max: int = Field(1500, ge=200, le=100_000, description="of rules, passages and history")
    bank_url: str | None = Field(None, description="the bank's interface for balances and payments")
    bank_deadline_s: float = Field(2.0, gt=0, le=30, description="for one of its answers")
    conversations_max: int = Field(200_000, ge=100, description="in memory; the quietest are forgotten")
    transaction_rows_max: int = Field(200, ge=1, le=10_000, description="messages in one transaction, about")
    transaction_timeout_s: float = Field(
        10.0, ge=1, le=900, description="then the broker aborts what a silent worker left open"
    )
    batch_rows_max: int = Field(16, ge=1, le=10_000, description="messages that are answered as one group")
    rows_in_flight_max: int = Field(256, ge=1, le=100_000, description="between reading and delivery")
    drain_deadline_s: float = Field(10.0, gt=0, le=300, description="for a rebalance or a stop")
    session_timeout_s: float = Field(
        15.0, ge=6, le=300, description="until a silent worker's partitions are given to another"
    )
    stream_host: str = Field("127.0.0.1", description="address of the answers as they are written")
    stream_port: Port = Field(9110, description="server-sent events, for the bank's own gateway")
    grpc_port: Port = Field(9112, description="the same as a gRPC stream")
    watchers_max: int = Field(1000, ge=1, le=100_000, description="answers that are watched at once")
    metrics_host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    metrics_port: Port = Field(9111, description="/metrics and /healthz")
    data_dir: Path = Field(Path(".weir/data/chat"), description="one worker's own")

"""A real risk worker with its real neighbours, on topics of the test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local import layout
from tests.support.keys import KeysProcess
from tests.support.servers import KafkaUnderTest
from tests.support.workers import START_DEADLINE_S, WorkerUnderTest, toml_of
from weir.cli.topics import ACCOUNTS_CONFIG, DEAD_LETTER_CONFIG
from weir.config import TopicSettings

__all__ = ["START_DEADLINE_S", "RiskUnderTest", "risk_under_test", "toml_of"]


@dataclass
class RiskUnderTest(WorkerUnderTest):
    """A risk worker."""

    service = "risk"
    role = "risk-worker"

    model_repository: Path = layout.MODEL_SOURCES

    def _make_topics(self) -> TopicSettings:
        make = self.kafka.make_topic
        return TopicSettings(
            transactions=make("bank.transactions", self.partitions),
            labels=make("bank.labels", self.partitions),
            decisions=make("weir.decisions", self.partitions),
            risk_dlq=make("weir.risk.dlq", self.partitions, DEAD_LETTER_CONFIG),
            risk_accounts=make("weir.risk.accounts", self.partitions, ACCOUNTS_CONFIG),
            risk_journal=make("weir.risk.journal", self.partitions),
            partitions=self.partitions,
        )

    def _own(self) -> dict[str, Any]:
        return {
            "group": self.topics.transactions,
            "model_repository": str(self.model_repository),
            "accounts_max": 100_000,
            "terminals_max": 100_000,
            "score_deadline_ms": 2000,
        }


@contextmanager
def risk_under_test(
    directory: Path,
    kafka: KafkaUnderTest,
    keys: KeysProcess,
    triton_endpoint: str,
    model_repository: Path = layout.MODEL_SOURCES,
    tables: dict[str, dict[str, Any]] | None = None,
    **overrides: Any,
) -> Iterator[RiskUnderTest]:
    """A worker, not yet started; it is gone when the block ends. `tables` adds to its settings file."""
    risk = RiskUnderTest(
        directory,
        kafka,
        keys,
        triton_endpoint,
        overrides=overrides,
        tables=tables or {},
        model_repository=model_repository,
    )
    try:
        yield risk
    finally:
        risk.kill()

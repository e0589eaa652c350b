"""What the Java peer is told: Weir's own model, policy, reasons and schemas, and Kafka Streams' settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.kafka_streams import tables
from infra.local import layout
from services.risk.batch import ModelRef
from services.risk.policy import Condition, Policy, PolicyFile
from services.risk.reasons import ReasonTable
from services.risk.rules import OUTCOME_OF_THEN
from services.risk.scoring import ServedModel
from services.risk.settings import RiskSettings
from services.risk.writing import KIND
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, canonical_text, load_schema
from weir.features.spec import CHANNELS, DEFAULT, FEATURES
from weir.ids import NAMESPACE

# Keys of the bench: what they seal is made up, and they never leave it.
KEY_ID = 1
KEY = bytes(range(32))
PSEUDONYM_KEY = bytes(range(32, 64))
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the peer: Kafka Streams' settings, store, and options of the JVM.

    terminals: also the terminals' windows, by a topic between that is keyed by terminal.
    """

    terminals: bool = False
    threads: int = 1
    commit_interval_ms: int = 100
    store: str = "in_memory"
    cache_bytes: int = 0
    jvm: tuple[str, ...] = ("-Xms1g", "-Xmx1g", "-XX:+UseSerialGC")
    more: Mapping[str, str] = field(default_factory=dict)

    def streams(self, servers: str, application: str, state_dir: Path) -> dict[str, str]:
        """The properties that `KafkaStreams` is made with."""
        return {
            "bootstrap.servers": servers,
            "application.id": application,
            "state.dir": str(state_dir),
            "processing.guarantee": "exactly_once_v2",
            "num.stream.threads": str(self.threads),
            "commit.interval.ms": str(self.commit_interval_ms),
            "statestore.cache.max.bytes": str(self.cache_bytes),
            "replication.factor": "1",
            "consumer.auto.offset.reset": "earliest",
            "consumer.max.poll.records": "4000",
            "buffered.records.per.partition": "8000",
            "producer.linger.ms": "5",
            "producer.batch.size": str(256 * 1024),
            "producer.buffer.memory": str(128 * 1024 * 1024),
            "producer.compression.type": "none",
            "enable.metrics.push": "false",
            **self.more,
        }


# The best of those that `python -m bench.peers.kafka_streams` tries, for each of two aims.
THROUGHPUT = Variant()
LATENCY = Variant(commit_interval_ms=10, more={"producer.linger.ms": "0"})


def defaults() -> RiskSettings:
    """The risk service as it comes, whatever this machine's own settings are."""
    return RiskSettings.model_validate({"model_repository": layout.MODEL_SOURCES})


def by_terminal(target: str) -> str:
    """The topic between accounts and terminals of the peer that writes `target`."""
    return f"{target}.by-terminal"


def shared(source: str, target: str, partitions: int) -> dict[str, Any]:
    """What every variant is told: all that decides what a decision is."""
    settings = defaults()
    repository = settings.model_repository
    model = ServedModel.read(repository, settings.model, settings.model_version)
    policy = PolicyFile(settings.policy, FEATURES).policy
    reasons = ReasonTable.load(settings.reasons, FEATURES)
    registry = FileRegistry.read()
    ids = {name: registry.subjects[SUBJECTS[name]][-1].id for name in ("transaction", "decision")}
    return {
        "source": source,
        "target": target,
        "partitions": partitions,
        "transaction_schema": canonical_text(load_schema("transaction")),
        "transaction_schema_id": ids["transaction"],
        "decision_schema": canonical_text(load_schema("decision")),
        "decision_schema_id": ids["decision"],
        "tenant": settings.tenant,
        "kind": KIND,
        "namespace": NAMESPACE.bytes.hex(),
        "key_id": KEY_ID,
        "key": KEY.hex(),
        "pseudonym_key": PSEUDONYM_KEY.hex(),
        "rates": settings.rates,
        "feature_spec": DEFAULT.id,
        "label_delay_days": DEFAULT.label_delay_days,
        "by_terminal": by_terminal(target),
        "utc_offset_ms": DEFAULT.utc_offset_minutes * 60_000,
        "night_start_hour": DEFAULT.night_start_hour,
        "night_end_hour": DEFAULT.night_end_hour,
        "model": _model(model.ref, repository / settings.model / model.ref.version / "model.onnx"),
        "policy": _policy(policy),
        "reasons": [list(text) for text in reasons.texts],
    }


def _model(ref: ModelRef, path: Path) -> dict[str, Any]:
    graph = tables.read(path)
    return {
        "name": ref.name,
        "version": ref.version,
        "sha256": ref.sha256,
        "features": list(FEATURES),
        "base_logit": graph.base_logit,
        "calibration": {"a": graph.a, "b": graph.b, "c": graph.c},
        "tables": [
            {
                "features": list(features),
                # JSON has no infinity, and no feature is larger than the largest float32.
                "edges": [[min(float(edge), _FLOAT32_MAX) for edge in axis] for axis in edges],
                "shares": [[float(share) for share in each.ravel()] for each in shares],
            }
            for features, edges, shares in graph.tables
        ],
    }


def _policy(policy: Policy) -> dict[str, Any]:
    cost, limits = policy.cost, policy.limits
    return {
        "version": policy.version,
        "sha256": policy.sha256,
        "review_at": policy.thresholds.review_at,
        "decline_at": policy.thresholds.decline_at,
        "cost": cost
        and {
            "fraud_loss_share": cost.fraud_loss_share,
            "review": float(cost.review),
            "decline": float(cost.decline),
        },
        "limits": {
            "amount_max": float(limits.amount_max),
            "zero_amount": limits.zero_amount,
            "id_bytes_max": limits.id_bytes_max,
            "future_skew_s": limits.future_skew_s,
            "event_age_max_s": limits.event_age_max_s,
        },
        "rules": [
            {
                "id": rule.id,
                "outcome": OUTCOME_OF_THEN[rule.then],
                "when": [_condition(condition) for condition in rule.when],
            }
            for rule in policy.rule_list
            if rule.applies == "always"
        ],
    }


def _condition(condition: Condition) -> dict[str, Any]:
    given = condition.value if isinstance(condition.value, list) else [condition.value]
    values: list[object] = [value if isinstance(value, str) else float(value) for value in given]
    if condition.feature is not None:
        return {"feature": FEATURES.index(condition.feature), "op": condition.op, "values": values}
    if condition.field == "channel":
        values = [CHANNELS.index(str(value)) for value in values]
    return {"field": condition.field, "op": condition.op, "values": values}


def write(
    path: Path, common: Mapping[str, Any], variant: Variant, servers: str, application: str, state_dir: Path
) -> None:
    """The file that the peer reads at its start."""
    config = {
        **common,
        "store": variant.store,
        "terminals": variant.terminals,
        "cache": variant.cache_bytes > 0,
        "streams": variant.streams(servers, application, state_dir),
    }
    path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")

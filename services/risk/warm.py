"""Compiled loops are compiled by the first call on a machine and loaded by the first of each process.

`warm` makes these calls on a payment of nobody, before a real one waits for them.
`python -m services.risk.warm` does so with throw-away keys and no neighbour, so that a set-up leaves the
compiled loops on the disk.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from prometheus_client import CollectorRegistry

from services.risk.contributions import split_contributions
from services.risk.decide import ModelRef, Scores
from services.risk.labels import LabelReading
from services.risk.policy import PolicyFile
from services.risk.reading import PaymentReading
from services.risk.reasons import ReasonTable
from services.risk.settings import DEFAULT_RATES, HERE
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from services.risk.writing import DecisionWriting, Names, Scored
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.decision import DecisionWriter
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.crypto.keyring import LiveSealer
from weir.crypto.pseudonym import Pseudonymizer
from weir.crypto.secret import Compartment, DataKey, Secret, Suite
from weir.features.accounts import Accounts
from weir.features.spec import DEFAULT, FEATURES
from weir.kafka.record_batch import batches_of
from weir.kafka.records import AnyOutput
from weir.obs.metrics import Metrics
from weir.streams import BatchGroup, RecordBatch
from weir.streams.dead_letter import DeadLetterWriter

_SCHEMA_ID = 1


async def warm(
    state: RiskState,
    reading: PaymentReading,
    writing: DecisionWriting,
    labels: LabelReading,
    model: ModelRef,
    ids: tuple[int, int],
    currency: str,
) -> None:
    """Take a made-up payment, what is no payment, and a label all the way; nothing is published.

    Args:
        state: a scrap one.
        ids: the registry's for transactions and for labels.
        currency: one that is accepted.
    """
    at_ms = time.time_ns() // 1_000_000
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    who = {"event_id": "warm", "account_id": "warm", "terminal_id": "warm", "event_time": at}
    payment = {**who, "amount": Decimal("1.0000"), "currency": currency, "channel": "POS"}
    label = {**who, "reported_time": at, "is_fraud": True, "source": "OTHER"}
    values = [frame(ids[0], RowCodec(load_schema("transaction")).encode(payment)), b"no payment"]
    group = BatchGroup([RecordBatch("warm", 0, [_record(row, value) for row, value in enumerate(values)])])
    state.attach(0, state.new_accounts(), 0, {})
    state.begin(1)
    read = reading(group, state)
    learnt, rows = labels([frame(ids[1], RowCodec(load_schema("label")).encode(label))], [at_ms])
    state.learn(learnt, 0, rows, 1)
    state.terminals.enter(*split_contributions(read.traces[0].contributions))
    changed = state.changelog(1, [0], at_ms)
    nothing = np.zeros((1, len(FEATURES)), np.float32)
    scores = Scores(nothing[:, 0], nothing[:, 0], nothing, 0.0, model)
    outputs, _ = await writing(group, read, Scored(scores, "", 0))
    told = state.journal(read.traces, read_ms=at_ms, now_ms=at_ms, model="", policy="", degraded="")
    _send([*outputs, *changed, *told])
    _keep(state)


def _record(offset: int, value: bytes) -> SimpleNamespace:
    return SimpleNamespace(offset=offset, key=b"warm", value=value, timestamp=0, headers=())


def _send(outputs: Sequence[AnyOutput]) -> None:
    for output in outputs:
        for batch in batches_of(output):
            batch.stamp(1, 1, 0, transactional=True)


def _keep(state: RiskState) -> None:
    """Restore, snapshot, load, roll back and forget."""
    accounts = state.accounts[0]
    keys, rows = accounts.encode_rows(accounts.changed_rows(1))
    state.new_accounts().restore_rows(keys.to_list(), rows.to_list())
    state.roll_back(1)
    state.begin(2)
    state.release(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "warm"
        accounts.save(path)
        state.terminals.save(path.with_suffix(".terminals"))
        Accounts.load(path, state.spec, rows_max=1000)
    state.forget_expired()


async def _warm_alone() -> None:
    metrics = Metrics("risk", CollectorRegistry())
    policy = PolicyFile(HERE / "policy.toml", FEATURES)
    key = secrets.token_bytes(32)

    def sealer(topic: str) -> LiveSealer:
        data_key = DataKey(1, Compartment(topic, "C3"), 1, Suite.AES_256_GCM, Secret(key))
        return LiveSealer(topic, data_key, float("inf"), time.monotonic)

    reading = PaymentReading(
        TransactionReader(),
        _SCHEMA_ID,
        rates=Rates.of(DEFAULT_RATES),
        hash_key=key[:16],
        policy=lambda: policy.in_force,
        metrics=metrics,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    writing = DecisionWriting(
        Names("warm", DEFAULT.id, "warm", 1, "warm", 1, _SCHEMA_ID),
        DecisionWriter(
            load_schema("decision"), _SCHEMA_ID, ReasonTable.load(HERE / "reasons.toml", FEATURES).texts
        ),
        DeadLetterWriter(sealer("warm.dlq"), _SCHEMA_ID),
        sealer=sealer("warm"),
        dlq_sealer=sealer("warm.dlq"),
        pseudonymizer=Pseudonymizer("warm", Secret(key)),
        metrics=metrics,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    labels = LabelReading(LabelReader(), _SCHEMA_ID, key[:16], CollectorRegistry())
    state = RiskState(StateTopics("warm", "warm"), accounts_max=1000, terminals_max=1000, owner="")
    model = ModelRef("warm", "1", "")
    await warm(state, reading, writing, labels, model, (_SCHEMA_ID, _SCHEMA_ID), next(iter(DEFAULT_RATES)))


if __name__ == "__main__":
    asyncio.run(_warm_alone())

"""The peer is honest: on the same payments it decides what Weir decides, but for what it does not know.

Once with its terminal windows, once without: then those features are 0 for both sides. Labels it never has.
Compared are features, contributions, outcome, reasons, ids, pseudonyms and what the sealed values open to.
"""

import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from bench.peers.kafka_streams import settings
from bench.peers.kafka_streams.build import Built
from services.risk.decide import ModelRef, RiskBatch, RiskDecisions, Scores, decide
from services.risk.policy import PolicyFile
from services.risk.reasons import ReasonTable
from services.risk.rules import currency_code
from services.risk.settings import RiskSettings
from services.risk.writing import KIND
from services.simulator.bank import Bank
from services.simulator.live import BankStream, Wire
from services.simulator.settings import SimulatorSettings
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema
from weir.crypto.envelope import IV_BYTES, PREFIX_BYTES, associated_data, parse_envelope_header
from weir.crypto.pseudonym import Pseudonymizer
from weir.crypto.secret import Secret
from weir.errors import IntegrityError
from weir.features.payments import CHANNELS, FEATURES, Payments, PaymentState
from weir.ids import decision_ids
from weir.state.hashing import keyed_hash_list

# The first of a terminal's features; they are the last.
TERMINALS_FROM = FEATURES.index("terminal_count_now_1d")
TOLERANCE = 1e-4
_TOPIC = "bench.check"
# Long enough that day buckets are used again, short of the age at which the policy refuses a payment.
_DAYS = 33
# A day's or two of 20 accounts.
_BACKWARDS = 50


@dataclass(frozen=True, slots=True)
class Answer:
    """What the peer said of one payment."""

    features: NDArray[np.float32]
    contributions: NDArray[np.float32]
    key: bytes
    value: bytes
    header: bytes


def check(built: Built, *, terminals: bool, accounts: int = 20) -> int:
    """How many payments were compared, all alike.

    Raises:
        IntegrityError: the first difference, by its field and the payment's number.
    """
    framed = _payments(accounts)
    answers = _ask(built, framed, terminals)
    rows = [RowCodec(load_schema("transaction")).decode(unframe(value)[1]) for value in framed]
    features = _features(rows, terminals)
    _alike("feature", np.stack([answer.features for answer in answers]), features)
    model = settings.defaults()
    scores = _scores(model, features)
    _alike("contribution", np.stack([answer.contributions for answer in answers]), scores.contributions)
    policy = PolicyFile(model.policy, FEATURES).in_force
    batch = RiskBatch(
        features,
        np.array([_scaled(row) for row in rows], np.int64),
        np.array([CHANNELS.index(row["channel"]) for row in rows], np.int8),
        np.array([currency_code(row["currency"]) for row in rows], np.uint32),
    )
    decisions = decide(batch, scores, policy.rules, policy.policy)
    reasons = ReasonTable.load(model.reasons, FEATURES)
    ids = decision_ids(model.tenant, [row["event_id"].encode() for row in rows], KIND)
    pseudonyms = Pseudonymizer(model.tenant, Secret(settings.PSEUDONYM_KEY)).of_all(
        [row["account_id"].encode() for row in rows]
    )
    codec = RowCodec(load_schema("decision"))
    for index, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        said = codec.decode(_opened(answer, ids[index]))
        expected = _expected(row, decisions, index, reasons)
        for name, value in expected.items():
            _same(index, name, said[name], value)
        _same(index, "key", answer.key, pseudonyms[index])
        _same(index, "decision_id", said["decision_id"].bytes, ids[index])
    return len(framed)


def _payments(accounts: int) -> list[bytes]:
    """The last days of a small bank, so that accounts pay often and buckets are left behind."""
    common = settings.shared(_TOPIC, _TOPIC, 1)
    now_ms = int(time.time() * 1000)
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
    bank = Bank(
        SimulatorSettings.model_validate({"accounts": accounts, "terminals": 50, "start_date": today})
    )
    stream = BankStream(bank, Wire(common["transaction_schema_id"], 0, 1, 1), b"B-")
    framed = [value for day in stream.history(_DAYS, now_ms) for value in day.values]
    # What comes out of order is compared too.
    middle = len(framed) // 2
    late = slice(middle, middle + _BACKWARDS)
    framed[late] = framed[late][::-1]
    return framed


def _ask(built: Built, framed: Sequence[bytes], terminals: bool) -> list[Answer]:
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        config, asked, said = (Path(folder) / name for name in ("config.json", "in", "out"))
        common, variant = settings.shared(_TOPIC, _TOPIC, 1), settings.Variant(terminals=terminals)
        settings.write(config, common, variant, "", "check", Path(folder))
        asked.write_bytes(b"".join(struct.pack(">i", len(value)) + value for value in framed))
        done = subprocess.run(
            built.command("peer.Check", str(config), str(asked), str(said)), capture_output=True, text=True
        )
        if done.returncode:
            raise IntegrityError(f"the Kafka Streams peer's check failed: {done.stderr[-2000:]}")
        return list(_answers(said.read_bytes()))


def _answers(data: bytes) -> Iterator[Answer]:
    at, width = 0, 4 * len(FEATURES)
    while at < len(data):
        features = np.frombuffer(data, ">f4", len(FEATURES), at).astype(np.float32)
        contributions = np.frombuffer(data, ">f4", len(FEATURES), at + width).astype(np.float32)
        at += 2 * width
        parts = []
        for _ in range(3):
            size = int.from_bytes(data[at : at + 4], "big")
            parts.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        yield Answer(features, contributions, *parts)


def _scaled(row: dict[str, Any]) -> int:
    return int(row["amount"] * 10_000)


def _features(rows: Sequence[dict[str, Any]], terminals: bool) -> NDArray[np.float32]:
    """Weir's own features; those of terminals set to 0 unless wanted. None of the payments has a label."""
    hash_key = bytes(16)
    payments = Payments(
        account=keyed_hash_list([row["account_id"].encode() for row in rows], hash_key),
        terminal=keyed_hash_list([row["terminal_id"].encode() for row in rows], hash_key),
        amount=np.array([_scaled(row) for row in rows], np.int64),
        event_ms=np.array([round(row["event_time"].timestamp() * 1000) for row in rows], np.int64),
        channel=np.array([CHANNELS.index(row["channel"]) for row in rows], np.int8),
    )
    features = PaymentState(accounts_max=len(rows) + 1, terminals_max=len(rows) + 1).observe(payments)
    if not terminals:
        features[:, TERMINALS_FROM:] = 0.0
    return features


def _scores(model: RiskSettings, features: NDArray[np.float32]) -> Scores:
    """What ONNX Runtime says, which is what Triton serves."""
    folder = model.model_repository / model.model
    newest = max(folder.glob("[0-9]*"), key=lambda path: int(path.name))
    session = onnxruntime.InferenceSession(str(newest / "model.onnx"), providers=["CPUExecutionProvider"])
    logit, probability, contributions = session.run(
        ["logit", "probability", "contributions"], {"features": features}
    )
    return Scores(logit, probability, contributions, 0.0, ModelRef(model.model, newest.name, ""))


def _opened(answer: Answer, record_id: bytes) -> bytes:
    """The decision's Avro, opened with the bench's key under the associated data that Weir binds."""
    schema_id, found = parse_envelope_header(answer.header)
    context = associated_data(_TOPIC, settings.KEY_ID, schema_id, record_id)
    end = PREFIX_BYTES + IV_BYTES
    if found != record_id:
        raise IntegrityError("the peer's header names another decision than Weir's id of the same event")
    plain = AESGCM(settings.KEY).decrypt(answer.value[PREFIX_BYTES:end], answer.value[end:], context)
    return unframe(plain)[1]


def _expected(
    row: dict[str, Any], decisions: RiskDecisions, index: int, reasons: ReasonTable
) -> dict[str, Any]:
    texts = [
        (reasons.texts[at], contribution)
        for at, contribution in zip(
            decisions.reason_index[index], decisions.reason_contribution[index], strict=True
        )
        if at >= 0
    ]
    fired = int(decisions.rules_fired[index])
    return {
        **{name: row[name] for name in ("event_id", "account_id", "terminal_id", "currency", "event_time")},
        "amount": row["amount"],
        "outcome": ("APPROVE", "REVIEW", "DECLINE")[int(decisions.outcome[index])],
        "score": float(decisions.score[index]),
        "probability": float(decisions.probability[index]),
        "logit": float(decisions.logit[index]),
        "rules": [name for bit, name in enumerate(decisions.rule_ids) if fired >> bit & 1],
        "reasons": [
            {
                "code": text.code,
                "feature": text.feature,
                "contribution": float(contribution),
                "text_en": text.text_en,
                "text_zh": text.text_zh,
            }
            for text, contribution in texts
        ],
        "degraded": False,
    }


def _alike(what: str, peer: NDArray[np.float32], ours: NDArray[np.float32]) -> None:
    difference = np.abs(peer - ours) / np.maximum(np.abs(ours), 1.0)
    if difference.max() > TOLERANCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        raise IntegrityError(
            f"the Kafka Streams peer's {what} {FEATURES[int(column)]} of payment {row} is "
            f"{peer[row, column]}, Weir's is {ours[row, column]}"
        )


def _same(index: int, name: str, peer: Any, ours: Any) -> None:
    if isinstance(ours, float):
        alike = abs(peer - ours) <= TOLERANCE
    elif name == "reasons":
        # Contributions that differ by a rounding may change places.
        alike = sorted((each["code"], each["text_zh"]) for each in peer) == sorted(
            (each["code"], each["text_zh"]) for each in ours
        ) and all(
            abs(mine["contribution"] - other["contribution"]) <= TOLERANCE
            for mine, other in zip(peer, ours, strict=True)
        )
    else:
        alike = peer == ours
    if not alike:
        raise IntegrityError(f"the Kafka Streams peer's {name} of payment {index} is not Weir's")

"""Payments and labels of a real broker in a folder: all of them, and what cannot be read with its bytes."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaProducer

from services.simulator.app import run
from services.simulator.settings import SimulatorSettings
from services.training.data import read_events
from services.training.errors import TrainingError
from services.training.prepare.clean import clean
from services.training.prepare.collect import collect
from services.training.prepare.contract import validate
from services.training.prepare.lake import Lake
from tests.support.servers import KafkaUnderTest
from weir.client.connection import TopicMissing
from weir.clock import now_ms
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings, TritonSettings
from weir.errors import NeighbourUnavailable
from weir.streams.neighbours import Connections

SMALL = SimulatorSettings(accounts=300, terminals=40, seed=3)


def connections(kafka: KafkaUnderTest, topics: TopicSettings) -> Connections:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    return Connections(settings, topics, TritonSettings(), KeyServiceSettings(), RegistrySettings())


async def test_what_the_topics_hold_is_collected_and_cleaned_for_a_training(kafka, tmp_path):
    topics = TopicSettings(
        transactions=kafka.make_topic("transactions", 3), labels=kafka.make_topic("labels", 3)
    )
    to = connections(kafka, topics)
    sent = await run(
        SMALL, to.kafka, topics, to.registry, count=50, as_fast_as_possible=True, history_days=40
    )
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for value in (b"no avro", b"\x00\x7f\xff\xff\xff1", None):
            await producer.send_and_wait(topics.transactions, value, key=b"k")
    done = await collect(to, tmp_path / "history")
    assert done.rows == {"transactions": sent.history + sent.payments, "labels": sent.labels}
    assert done.unreadable == {"not_framed": 1, "unknown_schema": 1, "empty": 1}
    bad = pq.read_table(tmp_path / "history" / "quarantine-collect.parquet").to_pylist()
    assert {row["value"] for row in bad} == {b"no avro", b"\x00\x7f\xff\xff\xff1", None}
    with Lake.of(tmp_path / "history", memory_mb=256) as lake:
        # Partition by partition, so not in the order of time.
        assert [finding.rule for finding in validate(lake, now_ms=now_ms(), days_min=35)] == ["out_of_order"]
        clean(lake, tmp_path / "clean", now_ms=now_ms())
    events = read_events(tmp_path / "clean")
    assert events.payments.row_count == sent.history + sent.payments
    assert events.is_fraud.sum() > 0
    with pytest.raises(TrainingError, match="exists"):
        await collect(to, tmp_path / "history")


async def test_a_topic_that_is_empty_or_missing_and_a_broker_that_is_away_are_told(kafka, tmp_path):
    topics = TopicSettings(
        transactions=kafka.make_topic("transactions", 1), labels=kafka.make_topic("labels", 1)
    )
    with pytest.raises(TrainingError, match="holds no labels"):
        await collect(connections(kafka, topics), tmp_path / "a")
    missing = topics.model_copy(update={"labels": "nowhere"})
    with pytest.raises(TopicMissing):
        await collect(connections(kafka, missing), tmp_path / "a")
    nobody = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    away = replace(connections(kafka, topics), kafka=nobody)
    with pytest.raises(NeighbourUnavailable):
        await collect(away, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []

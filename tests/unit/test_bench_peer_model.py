"""The Java peer is handed the shipped model's own tables; where it cannot be built, one line says so."""

import re

import numpy as np
import onnxruntime
import pytest

from bench.peers.kafka_streams import build, check, settings, tables
from services.training.additive import Table
from weir.features.spec import FEATURES


@pytest.fixture(scope="module")
def shipped():
    risk = settings.defaults()
    return max((risk.model_repository / risk.model).glob("[0-9]*"), key=lambda path: int(path.name))


def test_tables_read_from_the_graph_say_what_the_graph_says(shipped):
    """Random features over every edge's range, by the tables and by ONNX Runtime."""
    graph = tables.read(shipped / "model.onnx")
    rng = np.random.default_rng(7)
    x = np.zeros((500, len(FEATURES)), np.float32)
    for features, edges, _ in graph.tables:
        for feature, axis in zip(features, edges, strict=True):
            finite = axis[np.isfinite(axis)]
            x[:, feature] = rng.choice(finite, len(x)) + rng.choice([-1e-3, 0.0, 1e-3], len(x))
    found = np.zeros(x.shape)
    for features, edges, shares in graph.tables:
        table = Table(features, tuple(edges), tuple(share.astype(np.float64) for share in shares))
        for feature, share in zip(table.features, table.shares, strict=True):
            found[:, feature] += share[table.cells(x)]
    session = onnxruntime.InferenceSession(str(shipped / "model.onnx"))
    logit, contributions = session.run(["logit", "contributions"], {"features": x})
    assert np.abs(found - contributions).max() < 1e-5
    assert np.abs(graph.base_logit + found.sum(axis=1) - logit[:, 0]).max() < 1e-4


def test_the_peer_is_told_every_rule_that_acts_on_a_scored_payment():
    told = settings.shared("in", "out", 4)
    assert {rule["id"] for rule in told["policy"]["rules"]} >= {"burst_of_payments", "card_testing"}
    assert all("degraded" not in rule["id"] for rule in told["policy"]["rules"])
    assert len(told["reasons"]) == 2 * len(FEATURES)


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [("Model.java", "FEATURES", len(FEATURES)), ("Peer.java", "KNOWN", check.TERMINALS_FROM)],
)
def test_the_peer_has_every_feature_and_carries_all_of_the_account_to_the_terminal(file, name, count):
    source = (build.HERE / "java" / "peer" / file).read_text("utf-8")
    assert re.findall(rf"static final int {name} = (\d+);", source) == [str(count)]


def test_without_a_compiler_the_bench_says_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(build.NoJavac, match="Kafka Streams is left out: no javac 17 or newer") as caught:
        build.find_jdk()
    assert "\n" not in str(caught.value)


def test_a_compiler_that_does_not_run_is_named(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "javac").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "javac").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(build.NoJavac, match="not a working compiler"):
        build.find_jdk()

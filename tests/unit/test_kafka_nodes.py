"""What a broker of several is told: its place, its copies, its listeners, and where the others find it."""

import base64
import uuid

import pytest

from infra.local import kafka
from infra.local.kafka import KafkaNode, KafkaServer, new_cluster_id


def settings(tmp_path, node, **options):
    server = KafkaServer(tmp_path, tmp_path / "log", port=9001, controller_port=9002, node=node, **options)
    return server, server.server_properties()


def test_a_broker_alone_is_its_own_controller_and_keeps_one_copy(tmp_path):
    server, found = settings(tmp_path, None)
    assert found["process.roles"] == "broker,controller"
    assert found["transaction.state.log.replication.factor"] == "1"
    assert found["listeners"] == "CLIENT://127.0.0.1:9001,CONTROLLER://127.0.0.1:9002"
    assert found["advertised.listeners"] == "CLIENT://127.0.0.1:9001"
    assert server.internal_port == server.port


def test_of_three_nodes_each_write_is_on_two_and_one_may_be_away(tmp_path):
    voters = {1: 9002, 2: 9012, 3: 9022}
    _, found = settings(tmp_path, KafkaNode(2, 3, "id", voters))
    assert found["node.id"] == "2"
    assert found["controller.quorum.voters"] == "1@127.0.0.1:9002,2@127.0.0.1:9012,3@127.0.0.1:9022"
    for name in ("default", "offsets.topic", "transaction.state.log"):
        assert found[f"{name}.replication.factor"] == "3"
    assert found["min.insync.replicas"] == found["transaction.state.log.min.isr"] == "2"


def test_a_node_that_does_not_vote_has_no_controller_listener(tmp_path):
    _, found = settings(tmp_path, KafkaNode(2, 3, "id", {1: 9002}))
    assert found["process.roles"] == "broker"
    assert "CONTROLLER" not in found["listeners"]


def test_clients_are_told_the_proxys_port_and_brokers_their_own(tmp_path):
    node = KafkaNode(1, 1, "id", {1: 9002})
    server, found = settings(tmp_path, node, advertised_port=9100)
    assert server.bootstrap_servers == "127.0.0.1:9100"
    assert server.internal_bootstrap_servers == f"127.0.0.1:{server.internal_port}"
    assert found["listeners"].startswith("CLIENT://127.0.0.1:9001,INTERNAL://")
    assert found["advertised.listeners"] == (
        f"CLIENT://127.0.0.1:9100,INTERNAL://127.0.0.1:{server.internal_port}"
    )
    assert found["inter.broker.listener.name"] == "INTERNAL"


def test_a_cluster_id_never_looks_like_an_option(monkeypatch: pytest.MonkeyPatch):
    """The first id that is drawn would begin with a dash; the storage tool refuses such a one."""
    dashed = base64.urlsafe_b64decode("-AAAAAAAAAAAAAAAAAAAAA==")
    drawn = iter([uuid.UUID(bytes=dashed), uuid.UUID(int=7)])
    monkeypatch.setattr(kafka.uuid, "uuid4", lambda: next(drawn))
    assert new_cluster_id() == base64.urlsafe_b64encode(uuid.UUID(int=7).bytes).decode().rstrip("=")

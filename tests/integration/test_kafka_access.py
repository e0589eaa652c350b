"""Reaching a real broker by TLS, mutual TLS and SCRAM; each refusal is one line that says what to correct."""

import asyncio
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr

from infra.local.kafka import KafkaSecurity, KafkaServer
from infra.local.pki import ensure_pki
from tests.support.servers import running_server
from weir.cli.topics import create_missing, describe, wanted
from weir.config import KafkaSettings, TopicSettings
from weir.errors import AccessDenied, WeirError
from weir.kafka_options import client_options, connect

PASSWORD = "right-horse-7"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return ensure_pki(tmp_path_factory.mktemp("pki"), ["reader"])


@pytest.fixture(scope="module")
def scram(tmp_path_factory, pki):
    """A broker that wants TLS and a SCRAM user."""
    folder: Path = tmp_path_factory.mktemp("scram")
    security = KafkaSecurity(
        "SASL_SSL", pki.keys_server.certificate, pki.keys_server.key, pki.ca, scram_users={"risk": PASSWORD}
    )
    with running_server(KafkaServer(folder / "data", folder / "kafka.log", security=security)) as server:
        yield KafkaSettings(
            bootstrap_servers=server.bootstrap_servers,
            security_protocol="SASL_SSL",
            ssl_ca=pki.ca,
            sasl_username="risk",
            sasl_password=SecretStr(PASSWORD),
        )


@pytest.fixture(scope="module")
def mutual(tmp_path_factory, pki):
    """A broker that wants a certificate of its callers."""
    folder: Path = tmp_path_factory.mktemp("mutual")
    security = KafkaSecurity(
        "SSL", pki.keys_server.certificate, pki.keys_server.key, pki.ca, client_certificate_required=True
    )
    with running_server(KafkaServer(folder / "data", folder / "kafka.log", security=security)) as server:
        yield KafkaSettings(
            bootstrap_servers=server.bootstrap_servers,
            security_protocol="SSL",
            ssl_ca=pki.ca,
            ssl_certificate=pki.roles["reader"].certificate,
            ssl_key=pki.roles["reader"].key,
        )


async def refused(settings: KafkaSettings) -> WeirError:
    with pytest.raises(WeirError) as error:
        await asyncio.wait_for(connect(AIOKafkaAdminClient(**client_options(settings)), settings), 30)
    assert "\n" not in str(error.value)
    return error.value


async def test_scram_over_tls_makes_and_describes_topics(scram):
    topics = TopicSettings(partitions=3)
    assert len(await create_missing(scram, topics)) == len(wanted(topics))
    assert await create_missing(scram, topics) == []
    (found,) = await describe(scram, [topics.decisions])
    assert (len(found.partitions), found.record_count, found.lag()) == (3, 0, {})


async def test_a_wrong_password_is_a_denial_that_does_not_repeat_it(scram):
    error = await refused(scram.model_copy(update={"sasl_password": SecretStr("wrong-horse-8")}))
    assert isinstance(error, AccessDenied)
    assert "sasl_password" in str(error)
    assert "horse" not in str(error)


async def test_another_authority_is_a_denial(scram, tmp_path):
    error = await refused(scram.model_copy(update={"ssl_ca": ensure_pki(tmp_path, []).ca}))
    assert isinstance(error, AccessDenied)
    assert "ssl_ca" in str(error)


async def test_plaintext_to_a_tls_port_is_told(scram):
    error = await refused(KafkaSettings(bootstrap_servers=scram.bootstrap_servers))
    assert "security_protocol" in str(error)


async def test_mutual_tls_lets_the_certificate_in_and_nobody_without(mutual):
    assert len(await create_missing(mutual, TopicSettings())) == len(wanted(TopicSettings()))
    error = await refused(mutual.model_copy(update={"ssl_certificate": None, "ssl_key": None}))
    assert "certificate" in str(error)


async def test_a_topic_that_does_not_exist_is_described_as_such(mutual):
    (found,) = await describe(mutual, ["no.such.topic"])
    assert not found.exists

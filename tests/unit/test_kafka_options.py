"""Settings become a client's options; what cannot work is said in one line, without the password."""

import socket

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr

from weir.config import KafkaSettings
from weir.errors import ConfigError, NeighbourUnavailable
from weir.kafka_options import client_options, connect


def test_plaintext_needs_nothing_but_the_address():
    options = client_options(KafkaSettings(bootstrap_servers="broker:9092"))
    assert options == {
        "bootstrap_servers": "broker:9092",
        "security_protocol": "PLAINTEXT",
        "ssl_context": None,
    }


def test_scram_over_tls_carries_user_and_context():
    options = client_options(
        KafkaSettings(security_protocol="SASL_SSL", sasl_username="risk", sasl_password=SecretStr("hidden"))
    )
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("risk", "hidden")
    assert options["ssl_context"].check_hostname


def test_sasl_without_a_password_says_what_to_set():
    with pytest.raises(ConfigError, match="sasl_password"):
        client_options(KafkaSettings(security_protocol="SASL_SSL", sasl_username="risk"))


@pytest.mark.parametrize("field", ["ssl_ca", "ssl_certificate"])
def test_a_file_that_is_no_pem_is_named(tmp_path, field):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"wrong\.pem"):
        client_options(KafkaSettings(security_protocol="SSL", **{field: wrong}))


async def test_a_broker_that_is_away_is_one_line_with_its_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = KafkaSettings(bootstrap_servers=address)
    with pytest.raises(NeighbourUnavailable) as error:
        await connect(AIOKafkaAdminClient(**client_options(settings)), settings)
    assert address in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["localhost", "localhost:kafka", "a:9092,b", ""])
def test_an_address_that_is_not_host_and_port_is_named(address):
    with pytest.raises(ConfigError, match="host:port"):
        client_options(KafkaSettings(bootstrap_servers=address))

"""What gRPC says becomes a clause that names the settings to check."""

import re

import pytest

from weir.grpc_words import cause

ALL = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7443: "


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (f"{ALL}Failed to connect to remote host: connect: Connection refused (111)", "Connection refused"),
        (
            f"{ALL}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"
            "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK",
            r"TLS failed \(CERTIFICATE_VERIFY_FAILED\); check tls, ssl_ca",
        ),
        ("Ssl handshake failed: Socket closed", r"TLS failed \(the server ended the handshake\)"),
        ("one\ntwo", "^one$"),
        (None, "no detail"),
    ],
)
def test_a_cause_is_one_clause(details, said):
    assert re.search(said, cause(details))
    assert "\n" not in cause(details)
    assert "all addresses" not in cause(details)

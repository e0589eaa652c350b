"""Why a gRPC call did not reach its server, in a clause that a person can act on."""

import re

# "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7443: Connection refused"
_LAST_ERROR = re.compile(r"last error: [A-Z_]+: (?:ipv[46]|dns|unix):\S+ (.+)", re.DOTALL)
_TLS_REASON = re.compile(r"OPENSSL_internal:([A-Z0-9_]+)")
_LONGEST = 160


def cause(details: str | None) -> str:
    """The clause; a failed TLS handshake names the settings to check.

    Args:
        details: what gRPC says of the failed call.
    """
    text = (details or "").strip()
    if "handshake failed" in text or "SSL_ERROR" in text:
        reason = _TLS_REASON.search(text)
        return (
            f"TLS failed ({reason[1] if reason else 'the server ended the handshake'}); "
            "check tls, ssl_ca, ssl_certificate and ssl_key"
        )
    last = _LAST_ERROR.search(text)
    lines = (last[1] if last else text).splitlines()
    return lines[0][:_LONGEST] if lines else "no detail"

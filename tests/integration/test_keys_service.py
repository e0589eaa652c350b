"""The real key service, a process with mutual TLS: hand-outs, denials, rotation, restarts and outages."""

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from infra.local.pki import ensure_pki
from services.keys.audit import verify
from tests.support.keys import running_keys_service
from weir.config import KeyServiceSettings
from weir.crypto import Compartment, UnknownKey, envelope_header
from weir.crypto.client import KeyServiceAway, KeyServiceClient
from weir.crypto.keyring import Keyring, SealingKeyExpired
from weir.errors import AccessDenied

TOPIC = "weir.decisions"
RECORD_ID = bytes(range(16))
HEADER = envelope_header(3, RECORD_ID)
T = 5.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return ensure_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory, pki):
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
def short_lived(tmp_path, pki):
    """A service whose keys live for one second in a client."""
    with running_keys_service(tmp_path / "keys", cache_seconds=1, pki=pki) as service:
        yield service


async def until(condition, deadline_s=15.0):
    ends = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def seal_one(sealer, plaintext=b"approve"):
    return sealer.seal_batch([plaintext], [RECORD_ID], 3)[0]


def audit_records(service):
    return [json.loads(line) for line in service.audit_file.read_text().splitlines()]


async def test_a_worker_seals_and_a_reader_opens(shared_service):
    async with (
        await Keyring.connect(shared_service.settings("risk-worker")) as worker,
        await Keyring.connect(shared_service.settings("reader")) as reader,
    ):
        sealer = await worker.sealer(TOPIC)
        await sealer.ready()
        value = seal_one(sealer)
        assert await worker.sealer(TOPIC) is sealer
        assert await reader.open(value, TOPIC, HEADER, purpose="delivery") == b"approve"
        assert await reader.opener("delivery")(value, TOPIC, HEADER) == b"approve"
        handed_out = [r for r in audit_records(shared_service) if r["event"] == "handed_out"]
    assert [(r["role"], r["action"], r["purpose"]) for r in handed_out[-2:]] == [
        ("risk-worker", "seal", "sealing"),
        ("reader", "open", "delivery"),
    ]
    assert handed_out[-1]["key_id"] == value[1:5].hex()


async def test_every_worker_of_a_tenant_makes_the_same_pseudonyms(shared_service):
    names = []
    for _ in range(2):
        async with await Keyring.connect(shared_service.settings("risk-worker")) as keyring:
            bank, other = await keyring.pseudonymizer("bank"), await keyring.pseudonymizer("other")
            names.append((bank.of(b"acct-1"), bank.hash_key, other.of(b"acct-1")))
    assert names[0] == names[1]
    assert names[0][0] != names[0][2]


@pytest.mark.parametrize(
    ("role", "purpose"),
    [
        ("risk-worker", "sealing"),
        ("reader", "ledger"),
        ("admin", "administration"),
        ("monitor", "administration"),
    ],
)
async def test_a_role_that_may_not_open_gets_a_clear_denial_and_is_recorded(shared_service, role, purpose):
    async with await Keyring.connect(shared_service.settings("risk-worker")) as worker:
        value = seal_one(await worker.sealer(TOPIC))
    before = len(audit_records(shared_service))
    async with await Keyring.connect(shared_service.settings(role)) as keyring:
        for _ in range(3):
            with pytest.raises(AccessDenied, match=f"Role {role} may not open weir.decisions/C3") as caught:
                await keyring.open(value, TOPIC, HEADER, purpose=purpose)
            assert "\n" not in str(caught.value)
    # The refusal is remembered: three values, one call, one record.
    assert [r["event"] for r in audit_records(shared_service)[before:]] == ["denied"]


async def test_a_role_that_may_not_seal_or_administer_is_denied(shared_service):
    async with await Keyring.connect(shared_service.settings("reader")) as keyring:
        with pytest.raises(AccessDenied, match="Role reader may not seal"):
            await keyring.sealer(TOPIC)
        with pytest.raises(AccessDenied, match="may not pseudonymise"):
            await keyring.pseudonymizer("bank")
    client = KeyServiceClient(shared_service.settings("reader"))
    for call in (client.list_keys(T), client.rewrap(T), client.rotate(Compartment(TOPIC, "C3"), T)):
        with pytest.raises(AccessDenied):
            await call
    await client.close()


async def test_a_key_that_was_never_made_is_unknown(shared_service):
    async with await Keyring.connect(shared_service.settings("reader")) as keyring:
        with pytest.raises(UnknownKey):
            await keyring.open(b"\x01\x00\x00\x00\x00" + bytes(40), TOPIC, HEADER, purpose="delivery")


async def test_bad_names_are_refused_and_do_not_reach_the_audit(shared_service):
    client = KeyServiceClient(shared_service.settings("risk-worker"))
    before = len(audit_records(shared_service))
    for compartment in (Compartment("a\nb", "C3"), Compartment("", "C3"), Compartment(TOPIC, "C9")):
        with pytest.raises(Exception, match="bad_"):
            await client.sealing_key(compartment, T)
    with pytest.raises(Exception, match="bad_purpose"):
        await client.opening_key(1, "DE89 3704", T)
    await client.close()
    assert len(audit_records(shared_service)) == before


def client_certificate(pki, directory, names):
    authority_key = load_pem_private_key((pki.ca.parent / "ca.key").read_bytes(), None)
    authority = x509.load_pem_x509_certificate(pki.ca.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weir://role/admin")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (directory / "c.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "c.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return directory / "c.crt", directory / "c.key"


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("weir")],
        [x509.DNSName("weir://role/admin")],
        [x509.UniformResourceIdentifier("https://role/admin")],
        [x509.UniformResourceIdentifier("weir://role/")],
        [x509.UniformResourceIdentifier(f"weir://role/{r}") for r in ("reader", "admin")],
    ],
)
async def test_a_certificate_must_name_exactly_one_role(shared_service, pki, tmp_path, names):
    certificate, key = client_certificate(pki, tmp_path, names)
    client = KeyServiceClient(
        KeyServiceSettings(
            endpoint=shared_service.endpoint, ssl_ca=pki.ca, ssl_certificate=certificate, ssl_key=key
        )
    )
    with pytest.raises(AccessDenied, match="must name one role"):
        await client.list_keys(T)
    await client.close()
    assert audit_records(shared_service)[-1]["event"] == "unauthenticated"


async def test_strangers_and_callers_without_a_certificate_do_not_connect(shared_service, tmp_path):
    strange = ensure_pki(tmp_path, ["admin"])
    client = KeyServiceClient(
        KeyServiceSettings(
            endpoint=shared_service.endpoint,
            ssl_ca=shared_service.pki.ca,
            ssl_certificate=strange.roles["admin"].certificate,
            ssl_key=strange.roles["admin"].key,
        )
    )
    with pytest.raises(KeyServiceAway):
        await client.list_keys(T)
    await client.close()
    for credentials in (None, grpc.ssl_channel_credentials(shared_service.pki.ca.read_bytes())):
        channel = (
            grpc.aio.secure_channel(shared_service.endpoint, credentials)
            if credentials
            else grpc.aio.insecure_channel(shared_service.endpoint)
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=T)
        await channel.close()


async def test_health_and_metrics_tell_the_state(shared_service):
    identity = shared_service.pki.roles["monitor"]
    credentials = grpc.ssl_channel_credentials(
        shared_service.pki.ca.read_bytes(), identity.key.read_bytes(), identity.certificate.read_bytes()
    )
    async with grpc.aio.secure_channel(shared_service.endpoint, credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="weir.keys.v1.Keys"), timeout=T
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    client = KeyServiceClient(shared_service.settings("monitor"))
    await client.list_keys(T)
    await client.close()
    metrics = shared_service.metrics()
    assert 'weir_keys_requests_total{action="list",outcome="ok"}' in metrics
    assert "weir_keys_data_keys" in metrics


async def test_rotation_while_sealing_makes_no_pause_and_all_values_open(short_lived):
    """The sealer is never waited for; every value, of either epoch, opens."""
    admin = KeyServiceClient(short_lived.settings("admin"))
    async with (
        await Keyring.connect(short_lived.settings("risk-worker")) as worker,
        await Keyring.connect(short_lived.settings("reader")) as reader,
    ):
        sealer = await worker.sealer(TOPIC)
        first, values = sealer.key_id, []
        rotated = await admin.rotate(Compartment(TOPIC, "C3"), T)
        assert rotated.epoch == 2
        ends = time.monotonic() + 15
        while sealer.key_id == first or len(values) < 200:
            assert time.monotonic() < ends
            values.append(seal_one(sealer))
            await asyncio.sleep(0.001)
        values.append(seal_one(sealer))
        assert (sealer.key_id, sealer.epoch) == (rotated.key_id, 2)
        assert {v[1:5] for v in values} == {k.to_bytes(4, "big") for k in (first, rotated.key_id)}
        for value in values:
            assert await reader.open(value, TOPIC, HEADER, purpose="delivery") == b"approve"
    await admin.close()


async def test_with_the_service_stopped_the_sealer_waits_and_then_goes_on(short_lived):
    with capture_logs() as logs:
        async with await Keyring.connect(short_lived.settings("risk-worker")) as worker:
            sealer = await worker.sealer(TOPIC)
            short_lived.stop()
            assert seal_one(sealer)
            with pytest.raises(SealingKeyExpired):
                await until(lambda: not seal_one(sealer))
            with pytest.raises(SealingKeyExpired):
                await sealer.ready(deadline_s=0.2)
            waiting = asyncio.create_task(sealer.ready())
            await until(lambda: any(line["event"] == "key_service_away" for line in logs))
            assert not waiting.done()
            short_lived.start()
            await asyncio.wait_for(waiting, 20)
            assert seal_one(sealer)
    assert [line["event"] for line in logs if line["event"].startswith("key_service")] == [
        "key_service_away",
        "key_service_back",
    ]


async def test_without_a_service_a_deadline_ends_the_wait(tmp_path, pki, short_lived):
    short_lived.stop()
    async with await Keyring.connect(short_lived.settings("risk-worker")) as keyring:
        with pytest.raises(KeyServiceAway, match=r"key service at localhost:\d+"):
            await keyring.sealer(TOPIC, deadline_s=0.3)
    async with await Keyring.connect(short_lived.settings("reader")) as keyring:
        with pytest.raises(KeyServiceAway):
            await keyring.open(
                b"\x01\x00\x00\x00\x01" + bytes(40), TOPIC, HEADER, purpose="delivery", deadline_s=0.3
            )


async def test_a_restart_keeps_the_keys(short_lived):
    async with await Keyring.connect(short_lived.settings("risk-worker")) as worker:
        value = seal_one(await worker.sealer(TOPIC))
        pseudonym = (await worker.pseudonymizer("bank")).of(b"acct-1")
    short_lived.stop()
    short_lived.start()
    async with (
        await Keyring.connect(short_lived.settings("reader")) as reader,
        await Keyring.connect(short_lived.settings("risk-worker")) as worker,
    ):
        assert await reader.open(value, TOPIC, HEADER, purpose="delivery") == b"approve"
        assert (await worker.pseudonymizer("bank")).of(b"acct-1") == pseudonym
        assert seal_one(await worker.sealer(TOPIC))[1:5] == value[1:5]


async def test_kill_9_while_rotating_loses_no_key_and_breaks_no_record(short_lived):
    """Rotations are asked for as fast as they come while the process is killed, three times over."""
    compartment = Compartment(TOPIC, "C3")
    async with await Keyring.connect(short_lived.settings("risk-worker")) as worker:
        values = [seal_one(await worker.sealer(TOPIC))]
    confirmed = {int.from_bytes(values[0][1:5], "big"): 1}
    for _ in range(3):
        admin = KeyServiceClient(short_lived.settings("admin"))

        async def rotate_until_away(admin=admin):
            while True:
                info = await admin.rotate(compartment, T)
                confirmed[info.key_id] = info.epoch

        rotating = asyncio.create_task(rotate_until_away())
        count = len(confirmed)
        await until(lambda count=count: len(confirmed) >= count + 5)
        short_lived.kill()
        with pytest.raises(KeyServiceAway):
            await rotating
        await admin.close()
        short_lived.start()
    client = KeyServiceClient(short_lived.settings("admin"))
    kept = await client.list_keys(T)
    await client.close()
    assert confirmed.items() <= {key.key_id: key.epoch for key in kept}.items()
    assert [key.epoch for key in kept] == list(range(1, len(kept) + 1))
    assert [key.current for key in kept] == [False] * (len(kept) - 1) + [True]
    assert verify(short_lived.audit_file).sequence >= len(kept)
    async with await Keyring.connect(short_lived.settings("reader")) as reader:
        assert await reader.open(values[0], TOPIC, HEADER, purpose="delivery") == b"approve"


async def test_with_sm4_set_new_keys_are_sm4_gcm(tmp_path, pki):
    with running_keys_service(tmp_path / "k", extra='suite = "SM4_GCM"', pki=pki) as service:
        async with (
            await Keyring.connect(service.settings("risk-worker")) as worker,
            await Keyring.connect(service.settings("reader")) as reader,
        ):
            value = seal_one(await worker.sealer(TOPIC))
            assert await reader.open(value, TOPIC, HEADER, purpose="delivery") == b"approve"


def run_module(config):
    return subprocess.run(
        [sys.executable, "-m", "services.keys"],
        env={**os.environ, "WEIR_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=30,
    )


async def test_what_stops_a_start_is_one_clear_line(short_lived):
    """A second service on the same data; loose keystore; a keystore that is gone; no TLS."""
    second = run_module(short_lived.config)
    assert second.returncode == 4
    assert "another key service holds it" in second.stderr
    async with await Keyring.connect(short_lived.settings("risk-worker")) as worker:
        await worker.sealer(TOPIC)
    short_lived.stop()
    keystore = short_lived.directory / "keystore"
    keystore.chmod(0o755)
    loose = run_module(short_lived.config)
    assert loose.returncode == 7
    assert loose.stderr.endswith(
        f"{keystore}: permissions 0755 are too open for keys. Run `chmod 0700 {keystore}`.\n"
    )
    keystore.chmod(0o700)
    keystore.rename(short_lived.directory / "away")
    gone = run_module(short_lived.config)
    assert gone.returncode == 3
    assert "the keystore is not there" in gone.stderr
    config = short_lived.directory / "bare.toml"
    config.write_text("[keys_service]\n")
    bare = run_module(config)
    assert bare.returncode == 7
    assert "mutual TLS" in bare.stderr
    for run in (second, loose, gone, bare):
        assert "Traceback" not in run.stderr


async def test_no_key_material_in_files_logs_or_metrics(short_lived):
    """Every key handed out is looked for, raw and in hex, in all that the service wrote."""
    client = KeyServiceClient(short_lived.settings("risk-worker"))
    key, _ = await client.sealing_key(Compartment(TOPIC, "C3"), T)
    secret = await client.pseudonym_key("bank", T)
    await client.close()
    metrics = short_lived.metrics().encode()
    short_lived.stop()
    files = [p for folder in ("data", "keystore") for p in (short_lived.directory / folder).iterdir()]
    written = [p.read_bytes() for p in [*files, short_lived.directory / "keys.log"]] + [metrics]
    for material in (bytes(key.secret.reveal()), bytes(secret.reveal())):
        assert not any(material in text or material.hex().encode() in text for text in written)
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in files} == {0}

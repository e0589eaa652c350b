"""The keyring's times and refusals, with a key service made of functions and a clock of the test's."""

import asyncio
import os

import pytest
from structlog.testing import capture_logs

from weir.config import KeyServiceSettings
from weir.crypto import Compartment, DataKey, Sealer, Secret, Suite, UnknownKey, envelope_header, keyring
from weir.crypto.client import KeyServiceAway, KeyServiceClient
from weir.crypto.keyring import Keyring, SealingKeyExpired
from weir.errors import AccessDenied, ConfigError, IntegrityError, MissingPart

TOPIC = "weir.decisions"
RECORD_ID = bytes(16)
HEADER = envelope_header(1, RECORD_ID)


class Service:
    """What a `KeyServiceClient` answers: the newest key, or `trouble` while it is set."""

    endpoint = "localhost:1"

    def __init__(self):
        self.materials = [os.urandom(32)]
        self.trouble = None
        self.calls = []
        self.cache_s = 100.0

    def key(self, key_id):
        secret = Secret(self.materials[key_id])
        return DataKey(key_id, Compartment(TOPIC, "C3"), key_id + 1, Suite.AES_256_GCM, secret)

    async def sealing_key(self, compartment, timeout_s):
        self.calls.append("seal")
        if self.trouble is not None:
            raise self.trouble
        return self.key(len(self.materials) - 1), self.cache_s

    async def opening_key(self, key_id, purpose, timeout_s):
        self.calls.append(f"open {key_id} {purpose}")
        if self.trouble is not None:
            raise self.trouble
        if key_id >= len(self.materials):
            raise UnknownKey(key_id)
        return self.key(key_id), self.cache_s

    async def pseudonym_key(self, tenant, timeout_s):
        self.calls.append("pseudonym")
        return Secret(bytes(32))

    async def close(self):
        self.calls.append("close")


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def paused(monkeypatch):
    """Background renewals wait on this event instead of the time, so that a test says when they come."""
    gate, sleep = asyncio.Event(), asyncio.sleep

    async def wait(delay_s):
        if delay_s > 1:
            await gate.wait()
            gate.clear()
        else:
            await sleep(0)

    monkeypatch.setattr(keyring.asyncio, "sleep", wait)
    return gate


def seal(sealer):
    return sealer.seal_batch([b"x"], [RECORD_ID], 1)[0]


async def settled(condition):
    async with asyncio.timeout(5):
        loop = asyncio.get_running_loop()
        while not condition():
            turn = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn


async def test_a_held_key_serves_to_the_end_of_its_time_and_not_longer(service, clock, paused):
    async with Keyring(service, clock=clock) as ring:
        sealer = await ring.sealer(TOPIC)
        clock.now_s += 99.9
        await sealer.ready()
        assert seal(sealer)
        clock.now_s += 0.1
        with pytest.raises(SealingKeyExpired, match="nothing is sealed"):
            seal(sealer)
        with pytest.raises(SealingKeyExpired):
            await sealer.ready(deadline_s=0.01)
        waiting = asyncio.ensure_future(sealer.ready())
        paused.set()
        await asyncio.wait_for(waiting, 5)
        assert seal(sealer)
    assert service.calls == ["seal", "seal", "close"]


async def test_a_renewal_moves_the_sealer_to_the_newest_key_and_wipes_what_it_was_given(
    service, clock, paused
):
    given = []
    key = service.key
    service.key = lambda key_id: given.append(key(key_id)) or given[-1]
    async with Keyring(service, clock=clock) as ring:
        sealer = await ring.sealer(TOPIC)
        service.materials.append(os.urandom(32))
        paused.set()
        await settled(lambda: sealer.epoch == 2)
        assert seal(sealer)[1:5] == b"\0\0\0\1"
        await settled(lambda: [len(k.secret) for k in given] == [0, 0])


async def test_a_role_that_lost_its_right_seals_nothing_more_until_it_has_it_again(service, clock, paused):
    async with Keyring(service, clock=clock) as ring:
        sealer = await ring.sealer(TOPIC)
        service.trouble = AccessDenied("Role risk-worker may not seal")
        paused.set()
        await settled(lambda: len(service.calls) == 2 and not paused.is_set())
        for _ in range(2):
            with pytest.raises(AccessDenied, match="may not seal"):
                await sealer.ready()
            with pytest.raises(AccessDenied, match="may not seal"):
                seal(sealer)
        service.trouble = None
        paused.set()
        await settled(lambda: len(service.calls) == 3 and not paused.is_set())
        await sealer.ready()
        assert seal(sealer)


async def test_an_outage_is_told_once_and_so_is_its_end(service, clock, paused):
    service.trouble = KeyServiceAway("localhost:1", "refused")
    with capture_logs() as logs:
        async with Keyring(service, clock=clock) as ring:
            asked = asyncio.ensure_future(ring.sealer(TOPIC))
            await settled(lambda: len(service.calls) > 3)
            service.trouble = None
            paused.set()
            assert seal(await asyncio.wait_for(asked, 5))
    assert [line["event"] for line in logs] == ["key_service_away", "key_service_back"]


async def test_a_key_is_fetched_once_for_a_purpose_and_again_after_its_time(service, clock):
    value = Sealer(TOPIC, service.key(0)).seal_batch([b"x"], [RECORD_ID], 1)[0]
    async with Keyring(service, clock=clock) as ring:
        opened = [ring.open(value, TOPIC, HEADER, purpose="delivery") for _ in range(20)]
        assert await asyncio.gather(*opened) == [b"x"] * 20
        await ring.open(value, TOPIC, HEADER, purpose="audit")
        clock.now_s += 100
        await ring.open(value, TOPIC, HEADER, purpose="delivery")
    assert service.calls == ["open 0 delivery", "open 0 audit", "open 0 delivery", "close"]


@pytest.mark.parametrize("refusal", [AccessDenied("no"), UnknownKey(0)])
async def test_a_refusal_is_remembered_for_a_while(service, clock, refusal):
    """A topic full of records that may not be opened makes one call, not one for each."""
    value = Sealer(TOPIC, service.key(0)).seal_batch([b"x"], [RECORD_ID], 1)[0]
    service.trouble = refusal
    async with Keyring(service, clock=clock) as ring:
        for _ in range(5):
            with pytest.raises(type(refusal)):
                await ring.open(value, TOPIC, HEADER, purpose="delivery")
        assert len(service.calls) == 1
        service.trouble = None
        clock.now_s += keyring.REFUSAL_S
        assert await ring.open(value, TOPIC, HEADER, purpose="delivery") == b"x"


async def test_random_bytes_ask_for_nothing(service, clock):
    async with Keyring(service, clock=clock) as ring:
        for value in (b"", b"plain", os.urandom(20), b"\0" * 60):
            with pytest.raises(IntegrityError):
                await ring.open(value, TOPIC, HEADER, purpose="delivery")
    assert service.calls == ["close"]


async def test_keys_held_and_refusals_are_bounded(service, clock, monkeypatch):
    monkeypatch.setattr(keyring, "OPENING_KEYS_MAX", 3)
    service.materials = [os.urandom(32) for _ in range(6)]
    async with Keyring(service, clock=clock) as ring:
        for key_id in (*range(6), *range(20, 30), 5, 0):
            [value] = Sealer(TOPIC, service.key(key_id) if key_id < 6 else stranger(key_id)).seal_batch(
                [b"x"], [RECORD_ID], 1
            )
            if key_id < 6:
                assert await ring.open(value, TOPIC, HEADER, purpose="p") == b"x"
            else:
                with pytest.raises(UnknownKey):
                    await ring.open(value, TOPIC, HEADER, purpose="p")
    assert service.calls.count("open 5 p") == 1
    assert service.calls.count("open 0 p") == 2


def stranger(key_id):
    return DataKey(key_id, Compartment(TOPIC, "C3"), 1, Suite.AES_256_GCM, Secret(bytes(32)))


async def test_without_tls_only_this_machine_is_asked_and_certificates_must_be_there(tmp_path):
    for endpoint in ("keys.bank.example:7443", "10.0.0.1:7443"):
        with pytest.raises(ConfigError, match="in the clear"):
            KeyServiceClient(KeyServiceSettings(endpoint=endpoint, tls=False))
    with pytest.raises(ConfigError, match="names your role"):
        KeyServiceClient(KeyServiceSettings())
    absent = tmp_path / "absent.crt"
    with pytest.raises(MissingPart, match=r"absent\.crt"):
        KeyServiceClient(KeyServiceSettings(ssl_ca=absent, ssl_certificate=absent, ssl_key=absent))

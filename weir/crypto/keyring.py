"""Keys at hand: fetched from the key service, kept for as long as it allows, renewed without a pause.

A sealer moves to the newest data key between two batches. With the key service away it goes on with the key
it holds until that key's time is over; then it waits. Nothing is ever sent in the clear.

    keyring = await Keyring.connect(KeyServiceSettings.load())
    sealer = await keyring.sealer("weir.decisions")
    ...
    await sealer.ready()  # at once, unless the key service has been away for too long
    values = sealer.seal_batch(plaintexts, record_ids, schema_id)
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from weir.config import KeyServiceSettings
from weir.crypto.client import CALL_TIMEOUT_S, KeyServiceAway, KeyServiceClient
from weir.crypto.envelope import Opener, Sealer, Sealing, UnknownKey, sealing_key_id
from weir.crypto.pseudonym import Pseudonymizer
from weir.crypto.secret import Compartment, DataKey
from weir.errors import AccessDenied, NeighbourUnavailable, WeirError
from weir.obs.log import get_logger

log = get_logger("weir.crypto")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# A sealer asks again after this share of the key's time, so that most of it is left when the service is away.
RENEW_SHARE = (0.4, 0.6)
# A refusal is remembered this long: a topic full of foreign records must not become a call for each.
REFUSAL_S = 10.0
OPENING_KEYS_MAX = 4096
OPEN_DEADLINE_S = 30.0

Answer = TypeVar("Answer")
Clock = Callable[[], float]
Open = Callable[[bytes, str, bytes], Awaitable[bytes]]


class SealingKeyExpired(NeighbourUnavailable):
    """The sealer's key may be used no longer and the key service gave no newer one: await `ready()`."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(
            f"{topic}: the data key's time is over and the key service gave no newer one; nothing is sealed. "
            "Try `weir doctor`."
        )


class LiveSealer(Sealer):
    """A topic's sealer that renews its key in the background; `Keyring.sealer` makes it."""

    def __init__(self, topic: str, key: DataKey, expires_s: float, clock: Clock) -> None:
        super().__init__(topic, key)
        self._expires_s, self._clock = expires_s, clock
        self._denied: str | None = None
        self._renewed = asyncio.Condition()

    async def ready(self, deadline_s: float | None = None) -> None:
        """Returns when batches can be sealed: at once while the key's time runs, else when there is a newer.

        Args:
            deadline_s: how long to wait at most; None waits as long as it takes.
        Raises:
            AccessDenied: the key service no longer allows this role to seal here.
            SealingKeyExpired: nothing came within `deadline_s`.
        """
        if self._usable():
            return
        try:
            async with asyncio.timeout(deadline_s), self._renewed:
                await self._renewed.wait_for(self._usable)
        except TimeoutError:
            raise SealingKeyExpired(self.topic) from None

    def _current(self) -> Sealing:
        """What a batch is sealed with.

        Raises:
            SealingKeyExpired: `ready()` was not awaited before this batch.
            AccessDenied: the key service no longer allows it.
        """
        if not self._usable():
            raise SealingKeyExpired(self.topic)
        return super()._current()

    async def renew(self, key: DataKey, expires_s: float) -> None:
        """Seals with `key` from the next batch on, until `expires_s` on the clock."""
        if key.key_id != self.key_id:
            log.info("data_key_changed", topic=self.topic, epoch=key.epoch, key_id=f"{key.key_id:08x}")
            self.use(key)
        self._expires_s, self._denied = expires_s, None
        async with self._renewed:
            self._renewed.notify_all()

    async def deny(self, reason: str) -> None:
        """Seals nothing more: the role lost its right."""
        self._denied = reason
        async with self._renewed:
            self._renewed.notify_all()

    def _usable(self) -> bool:
        if self._denied is not None:
            raise AccessDenied(self._denied)
        return self._clock() < self._expires_s


class Keyring:
    """One process's keys, by the role that its certificate names. Close it, or use it as a context."""

    def __init__(self, client: KeyServiceClient, *, clock: Clock = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._sealers: dict[Compartment, LiveSealer] = {}
        self._renewals: list[asyncio.Task[None]] = []
        self._opening: dict[str, _OpeningKeys] = {}
        self._pseudonymizers: dict[str, Pseudonymizer] = {}
        self._asking = asyncio.Lock()
        self._away = False

    @classmethod
    async def connect(cls, settings: KeyServiceSettings) -> Self:
        """A keyring; the key service is asked when the first key is needed.

        Raises:
            ConfigError, MissingPart: [keys] names no certificate, or one that is not there.
        """
        return cls(KeyServiceClient(settings))

    async def close(self) -> None:
        """Stops renewing and forgets the keys; sealers end with their key's time."""
        for task in self._renewals:
            task.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)
        self._renewals.clear()
        self._sealers.clear()
        self._opening.clear()
        self._pseudonymizers.clear()
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def sealer(
        self, topic: str, data_class: str = "C3", *, deadline_s: float | None = None
    ) -> LiveSealer:
        """The sealer of a topic; the same one each time.

        Args:
            deadline_s: how long to wait for the key service; None waits as long as it takes.
        Raises:
            AccessDenied: this role may not seal there.
            KeyServiceAway: no answer within `deadline_s`.
        """
        compartment = Compartment(topic, data_class)
        async with self._asking:
            sealer = self._sealers.get(compartment)
            if sealer is None:
                key, expires_s, cache_s = await self._sealing_key(compartment, deadline_s)
                sealer = self._sealers[compartment] = LiveSealer(topic, key, expires_s, self._clock)
                key.secret.wipe()
                renewal = self._renew_for_good(compartment, sealer, cache_s)
                self._renewals.append(asyncio.create_task(renewal, name=f"renew {compartment}"))
        return sealer

    async def open(
        self,
        value: bytes,
        topic: str,
        envelope_header: bytes,
        *,
        purpose: str,
        deadline_s: float | None = OPEN_DEADLINE_S,
    ) -> bytes:
        """The plaintext of a sealed value; its key is fetched when it is not at hand.

        Args:
            purpose: why this is read; the policy must allow it, and it stands in the audit record.
            deadline_s: how long to wait for the key service; None waits as long as it takes.
        Raises:
            AccessDenied: this role may not open this topic for this purpose.
            IntegrityError: value, header or topic is not what was sealed (UnknownKey: no such key).
            KeyServiceAway: no answer within `deadline_s`.
        """
        keys = self._opening.get(purpose)
        if keys is None:
            keys = self._opening[purpose] = _OpeningKeys(self._clock)
        key_id = sealing_key_id(value)
        if not keys.holds(key_id):
            await self._fetch(keys, key_id, purpose, deadline_s)
        return keys.opener.open(value, topic, envelope_header)

    def opener(self, purpose: str) -> Open:
        """`open` for one purpose: `await open(value, topic, envelope_header)`."""

        async def open_value(value: bytes, topic: str, envelope_header: bytes) -> bytes:
            return await self.open(value, topic, envelope_header, purpose=purpose)

        return open_value

    async def pseudonymizer(self, tenant: str, *, deadline_s: float | None = None) -> Pseudonymizer:
        """The tenant's pseudonyms; the same object each time. Its key does not rotate.

        Raises:
            AccessDenied: this role may not.
            KeyServiceAway: no answer within `deadline_s`.
        """
        async with self._asking:
            known = self._pseudonymizers.get(tenant)
            if known is None:
                secret = await self._persist(lambda t: self._client.pseudonym_key(tenant, t), deadline_s)
                known = self._pseudonymizers[tenant] = Pseudonymizer(tenant, secret)
        return known

    async def _fetch(self, keys: "_OpeningKeys", key_id: int, purpose: str, deadline_s: float | None) -> None:
        async with keys.fetching:
            if keys.holds(key_id):
                return
            asked_s = self._clock()
            try:
                key, cache_s = await self._persist(
                    lambda t: self._client.opening_key(key_id, purpose, t), deadline_s
                )
            except (AccessDenied, UnknownKey) as refusal:
                keys.refuse(key_id, refusal)
                raise
            keys.add(key, asked_s + cache_s)
            key.secret.wipe()

    async def _sealing_key(
        self, compartment: Compartment, deadline_s: float | None
    ) -> tuple[DataKey, float, float]:
        """The newest key, when it expires, and for how many seconds it may be kept."""

        async def ask(timeout_s: float) -> tuple[DataKey, float, float]:
            asked_s = self._clock()
            key, cache_s = await self._client.sealing_key(compartment, timeout_s)
            return key, asked_s + cache_s, cache_s

        return await self._persist(ask, deadline_s)

    async def _renew_for_good(self, compartment: Compartment, sealer: LiveSealer, cache_s: float) -> None:
        wait_s = cache_s
        while True:
            # Each worker at its own moment, so that many do not ask at once.
            await asyncio.sleep(wait_s * random.uniform(*RENEW_SHARE))
            wait_s = min(cache_s, REFUSAL_S)
            try:
                key, expires_s, cache_s = await self._sealing_key(compartment, None)
            except AccessDenied as error:
                log.error("sealing_denied", topic=sealer.topic, reason=str(error))
                await sealer.deny(str(error))
            except WeirError as error:
                # Wrong for now; the held key still serves, and its end is `SealingKeyExpired`.
                log.error("data_key_not_renewed", topic=sealer.topic, reason=str(error))
            else:
                wait_s = cache_s
                await sealer.renew(key, expires_s)
                key.secret.wipe()

    async def _persist(self, ask: Callable[[float], Awaitable[Answer]], deadline_s: float | None) -> Answer:
        """The answer, however often it takes; between two tries a jittered pause that doubles."""
        ends_s = None if deadline_s is None else self._clock() + deadline_s
        pause_s = BACKOFF_FIRST_S
        while True:
            left_s = None if ends_s is None else ends_s - self._clock()
            try:
                answer = await ask(
                    CALL_TIMEOUT_S if left_s is None else max(0.001, min(CALL_TIMEOUT_S, left_s))
                )
            except KeyServiceAway as error:
                self._note_away(error)
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if ends_s is not None and self._clock() + wait_s >= ends_s:
                    raise
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, BACKOFF_MAX_S)
            else:
                if self._away:
                    self._away = False
                    log.info("key_service_back", endpoint=self._client.endpoint)
                return answer

    def _note_away(self, error: KeyServiceAway) -> None:
        if not self._away:
            self._away = True
            log.warning("key_service_away", endpoint=error.endpoint, reason=error.detail)


class _OpeningKeys:
    """The keys that may be used for one purpose, each for its time; refusals are remembered too."""

    def __init__(self, clock: Clock) -> None:
        self.opener = Opener()
        self.fetching = asyncio.Lock()
        self._clock = clock
        self._expires_s: dict[int, float] = {}
        self._refusals: dict[int, tuple[float, WeirError]] = {}

    def holds(self, key_id: int) -> bool:
        """Whether the key may be used now; raises again what was refused a moment ago."""
        now_s = self._clock()
        if now_s < self._expires_s.get(key_id, 0.0):
            return True
        refused = self._refusals.get(key_id)
        if refused is not None:
            until_s, error = refused
            if now_s < until_s:
                raise error.with_traceback(None)
            del self._refusals[key_id]
        return False

    def add(self, key: DataKey, expires_s: float) -> None:
        """Holds the key until `expires_s`; at the bound, the one held for longest goes."""
        if len(self._expires_s) >= OPENING_KEYS_MAX:
            oldest = next(iter(self._expires_s))
            del self._expires_s[oldest]
            self.opener.discard(oldest)
        self.opener.add(key)
        self._expires_s[key.key_id] = expires_s

    def refuse(self, key_id: int, error: WeirError) -> None:
        """Remembers a refusal for a while."""
        if len(self._refusals) >= OPENING_KEYS_MAX:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[key_id] = (self._clock() + REFUSAL_S, error)

"""Makes, keeps and hands out keys: authorises, records, then acts, in this order. Knows no gRPC."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.keys.audit import AuditLog
from services.keys.authorize import PURPOSE_OF, Action, Policy, check_name, check_word, enforce
from services.keys.store import KeyStore, KeyTaken, StoredKey
from weir.crypto.kek import KekProvider, data_key_context, pseudonym_key_context
from weir.crypto.pseudonym import KEY_BYTES as PSEUDONYM_KEY_BYTES
from weir.crypto.secret import Compartment, DataKey, DataKeyInfo, Secret, Suite
from weir.errors import AccessDenied, BadInput, WeirError

DATA_CLASSES = ("C1", "C2", "C3")


class KeyNotFound(WeirError):
    """No data key has this id, or the compartment has none."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as its certificate says."""

    role: str
    # Names the certificate in the audit record: SHA-256 of it in hex, or "loopback".
    certificate: str


class Custodian:
    """The key service's whole behaviour over a store, a KEK provider and an audit log.

    Every method authorises first, makes the answer durable in the audit log, and only then hands out or
    changes anything: a crash leaves at worst a record of something that was allowed and not done.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        store: KeyStore,
        keks: KekProvider,
        audit: AuditLog,
        suite: Suite = Suite.AES_256_GCM,
        data_key_age_max_s: int = 43_200,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy, self._store, self._keks, self._audit = policy, store, keks, audit
        self._suite, self._age_max_ms, self._now = suite, data_key_age_max_s * 1000, now
        # One change at a time: between reading the newest epoch and adding the next lies an await.
        self._changing = asyncio.Lock()

    async def sealing_key(self, caller: Caller, compartment: Compartment) -> DataKey:
        """The compartment's newest key; the first, or the next when the newest is too old, is made.

        Raises:
            AccessDenied, BadInput; NeighbourUnavailable when store or audit log cannot be written.
        """
        resource = self._authorise(caller, Action.SEAL, _resource(compartment))
        async with self._changing:
            newest = self._store.newest(compartment)
            if newest is None or self._now_ms() - newest.created_ms >= self._age_max_ms:
                newest = await self._create(caller, Action.SEAL, compartment, newest)
        key = await self._unwrapped(newest)
        self._record(caller, Action.SEAL, resource, PURPOSE_OF[Action.SEAL], "handed_out", newest)
        return key

    async def opening_key(self, caller: Caller, key_id: int, purpose: str) -> DataKey:
        """The key with this id.

        Raises:
            KeyNotFound, AccessDenied, BadInput.
        """
        check_word("purpose", purpose)
        stored = self._store.by_id(key_id)
        if stored is None:
            self._record(caller, Action.OPEN, "unknown", purpose, "not_found")
            raise KeyNotFound(f"No data key {key_id:08x}: it was never made here, or was removed.")
        resource = self._authorise(caller, Action.OPEN, _resource(stored.compartment), purpose, stored)
        key = await self._unwrapped(stored)
        self._record(caller, Action.OPEN, resource, purpose, "handed_out", stored)
        return key

    async def pseudonym_key(self, caller: Caller, tenant: str) -> Secret:
        """The tenant's pseudonym key, made on the first request. It does not rotate: pseudonyms would change.

        Raises:
            AccessDenied, BadInput.
        """
        action, purpose = Action.PSEUDONYMISE, PURPOSE_OF[Action.PSEUDONYMISE]
        resource = self._authorise(caller, action, f"tenant/{check_name('tenant', tenant)}")
        async with self._changing:
            wrapped = self._store.pseudonym_key(tenant)
            if wrapped is None:
                fresh = Secret(secrets.token_bytes(PSEUDONYM_KEY_BYTES))
                wrapped = await self._keks.wrap(fresh, pseudonym_key_context(tenant))
                fresh.wipe()
                self._record(caller, action, resource, purpose, "created")
                self._store.add_pseudonym_key(tenant, wrapped, self._now_ms())
        secret = await self._keks.unwrap(wrapped, pseudonym_key_context(tenant))
        self._record(caller, action, resource, purpose, "handed_out")
        return secret

    async def rotate(self, caller: Caller, compartment: Compartment) -> DataKeyInfo:
        """Starts the compartment's next epoch.

        Raises:
            KeyNotFound: it has no key yet, which its first sealer makes.
            AccessDenied, BadInput.
        """
        self._authorise(caller, Action.ROTATE, _resource(compartment))
        async with self._changing:
            newest = self._store.newest(compartment)
            if newest is None:
                raise KeyNotFound(
                    f"{compartment} has no data key yet: the first one who seals there makes it."
                )
            return _info(await self._create(caller, Action.ROTATE, compartment, newest), current=True)

    async def rewrap(self, caller: Caller) -> tuple[int, str]:
        """Wraps every key with the newest KEK; gives how many were not already, and the KEK's id.

        Raises:
            AccessDenied; IntegrityError when a key does not unwrap: nothing is changed then.
        """
        resource = self._authorise(caller, Action.REWRAP, "keys")
        async with self._changing:
            kek_id = await self._keks.current_kek_id()
            data_keys, pseudonym_keys = [], []
            for stored in self._store.all_keys():
                if stored.wrapped.kek_id != kek_id:
                    context = _context(stored)
                    secret = await self._keks.unwrap(stored.wrapped, context)
                    data_keys.append((stored.key_id, await self._keks.wrap(secret, context)))
                    secret.wipe()
            for tenant, wrapped in self._store.pseudonym_keys():
                if wrapped.kek_id != kek_id:
                    context = pseudonym_key_context(tenant)
                    secret = await self._keks.unwrap(wrapped, context)
                    pseudonym_keys.append((tenant, await self._keks.wrap(secret, context)))
                    secret.wipe()
            count = len(data_keys) + len(pseudonym_keys)
            self._record(caller, Action.REWRAP, resource, PURPOSE_OF[Action.REWRAP], "rewrapped", count=count)
            self._store.rewrap(data_keys, pseudonym_keys)
        return count, kek_id

    async def list_keys(self, caller: Caller) -> list[DataKeyInfo]:
        """Every data key without its material, by compartment and epoch.

        Raises:
            AccessDenied.
        """
        resource = self._authorise(caller, Action.LIST, "keys")
        stored = self._store.all_keys()
        newest = {key.compartment: key.epoch for key in stored}
        self._record(caller, Action.LIST, resource, PURPOSE_OF[Action.LIST], "listed", count=len(stored))
        return [_info(key, current=newest[key.compartment] == key.epoch) for key in stored]

    def refused(self, certificate: str, action: Action) -> None:
        """Records a caller whose certificate names no role."""
        self._record(Caller("", certificate), action, "unknown", "unknown", "unauthenticated")

    def key_count(self) -> int:
        """How many data keys are stored."""
        return len(self._store.all_keys())

    async def check(self) -> None:
        """Raises a WeirError when keys could not be handed out now: store or keystore is away."""
        self._store.is_empty()
        await self._keks.current_kek_id()

    def _authorise(
        self,
        caller: Caller,
        action: Action,
        resource: str,
        purpose: str | None = None,
        stored: StoredKey | None = None,
    ) -> str:
        purpose = purpose if purpose is not None else PURPOSE_OF[action]
        try:
            enforce(self._policy, role=caller.role, action=action, resource=resource, purpose=purpose)
        except AccessDenied:
            self._record(caller, action, resource, purpose, "denied", stored)
            raise
        return resource

    async def _create(
        self, caller: Caller, action: Action, compartment: Compartment, newest: StoredKey | None
    ) -> StoredKey:
        epoch = newest.epoch + 1 if newest else 1
        secret = Secret(secrets.token_bytes(self._suite.key_bytes))
        try:
            while True:
                # Random, so that two key services of one bank are unlikely to give one id twice.
                key_id = secrets.randbits(32)
                if self._store.by_id(key_id) is None:
                    break
            context = data_key_context(key_id, compartment, epoch, self._suite)
            wrapped = await self._keks.wrap(secret, context)
        finally:
            secret.wipe()
        stored = StoredKey(key_id, compartment, epoch, self._suite, self._now_ms(), wrapped)
        self._record(caller, action, _resource(compartment), PURPOSE_OF[action], "created", stored)
        try:
            self._store.add(stored)
        except KeyTaken as error:
            raise BadInput(
                "epoch_taken", f"{compartment} was rotated elsewhere at once; ask again"
            ) from error
        return stored

    async def _unwrapped(self, stored: StoredKey) -> DataKey:
        secret = await self._keks.unwrap(stored.wrapped, _context(stored))
        return DataKey(stored.key_id, stored.compartment, stored.epoch, stored.suite, secret)

    def _record(
        self,
        caller: Caller,
        action: Action,
        resource: str,
        purpose: str,
        outcome: str,
        stored: StoredKey | None = None,
        **more: int,
    ) -> None:
        named: dict[str, str | int] = (
            {"key_id": f"{stored.key_id:08x}", "epoch": stored.epoch} if stored else {}
        )
        self._audit.append(
            now=self._now(),
            event=outcome,
            role=caller.role,
            certificate=caller.certificate,
            action=action.value,
            resource=resource,
            purpose=purpose,
            **named,
            **more,
        )

    def _now_ms(self) -> int:
        return int(self._now().timestamp() * 1000)


def _resource(compartment: Compartment) -> str:
    check_name("topic", compartment.topic)
    if compartment.data_class not in DATA_CLASSES:
        raise BadInput("bad_data_class", f"a data class is one of {', '.join(DATA_CLASSES)}")
    return str(compartment)


def _context(stored: StoredKey) -> bytes:
    return data_key_context(stored.key_id, stored.compartment, stored.epoch, stored.suite)


def _info(stored: StoredKey, *, current: bool) -> DataKeyInfo:
    return DataKeyInfo(
        stored.key_id,
        stored.compartment,
        stored.epoch,
        stored.suite,
        stored.created_ms,
        stored.wrapped.kek_id,
        current,
    )

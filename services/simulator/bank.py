"""A synthetic bank: customers with a home, a purse and habits, terminals with a trade, and honest days.

Pure numpy and no clock: `Bank(settings)` and a day's number decide every payment of that day, so days can be
made in any order. How fraud is laid over them is in `services.simulator.fraud`.
"""

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.simulator.settings import SimulatorSettings

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
POS, ECOM, ATM, TRANSFER = range(4)
CHANNEL_COUNT = 4

# Share of the terminals of each channel, and what an average customer spends at one, in currency units.
_TERMINAL_SHARE = (0.66, 0.22, 0.10, 0.02)
_PRICE = np.array([24.0, 42.0, 90.0, 160.0])
CATEGORIES = np.array(
    ["5411", "5812", "5541", "5912", "5651", "4111", "5732", "5942", "7011", "5944", "6011", "4829"]
)
_CATEGORY_PRICE = np.array([1.0, 0.9, 1.5, 0.7, 1.8, 0.3, 3.0, 0.8, 4.0, 5.0, 1.0, 1.0])
_ATM_CATEGORY, _TRANSFER_CATEGORY = 10, 11
COUNTRIES = np.array(["DE", "FR", "NL", "AT", "PL", "ES", "IT", "US", "GB", "CN"])
PREFERRED = 6
HONEST = 0

# Independent streams of random numbers, so that a change in one part leaves the others as they were.
STREAM_WORLD, STREAM_DAY, STREAM_TRIP, STREAM_FRAUD, STREAM_TERMINAL_FRAUD, STREAM_LABEL = range(6)


@dataclass(frozen=True, slots=True)
class Events:
    """Payments as columns of indexes and numbers; identifiers are made from these when they are written.

    account, terminal: (n,) int64 index. amount: (n,) int64 in 1/10000. event_ms: (n,) int64, UTC.
    channel: (n,) int8, as in `weir.features.payments.CHANNELS`.
    counterparty: (n,) int64 account index, -1 for none.
    fraud_kind: (n,) int8, 0 honest, else an index into `services.simulator.fraud.KINDS`; never a feature.
    """

    account: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.int64]
    event_ms: NDArray[np.int64]
    channel: NDArray[np.int8]
    counterparty: NDArray[np.int64]
    fraud_kind: NDArray[np.int8]

    def __len__(self) -> int:
        return self.account.size

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Events":
        """Some of the rows."""
        return Events(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: "list[Events]") -> Self:
        """All rows of `parts`, in their order; at least one part."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def by_time(self) -> "Events":
        """The same rows by rising event time."""
        return self.take(np.argsort(self.event_ms, kind="stable"))


class Bank:
    """Customers and terminals, drawn once from the seed."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        start = datetime.fromisoformat(settings.start_date).replace(tzinfo=UTC)
        self.start_ms = int(start.timestamp() * 1000)
        rng = self.random(STREAM_WORLD)
        self._draw_terminals(rng)
        self._draw_accounts(rng)

    def random(self, stream: int, day: int = 0) -> Generator:
        """The random numbers of one stream of one day; days before the first are days too."""
        return np.random.default_rng([self.settings.seed, stream, day + 1_000_000])

    def day_start_ms(self, day: int) -> int:
        """Midnight, UTC, of a day counted from `start_date`."""
        return self.start_ms + day * DAY_MS

    def honest_day(self, day: int) -> Events:
        """The honest payments of a day, in no order."""
        rng = self.random(STREAM_DAY, day)
        account = self._payers(rng, day)
        n = account.size
        channel = (rng.random(n)[:, None] > self.channel_edges[account]).sum(axis=1).astype(np.int8)
        travelling = self._travelling(day)[account]
        terminal = self._terminals_of(rng, account, channel, travelling)
        amount = self.amounts(rng, account, terminal, channel)
        amount *= np.where(travelling, 1.4, 1.0)
        # Unlucky honest customers: the sofa, the holiday, the present; no model should be sure about them.
        amount *= np.where(rng.random(n) < 0.02, np.exp(rng.normal(1.3, 0.5, n)), 1.0)
        subscription = (channel == ECOM) & (rng.random(n) < 0.12)
        amount = np.where(subscription, 0.99 + np.floor(rng.random(n) * 10), amount)
        counterparty = np.where(
            channel == TRANSFER,
            (account * 7 + np.floor(rng.random(n) ** 2 * 12).astype(np.int64) * 104_729 + 1)
            % self.settings.accounts,
            -1,
        )
        return Events(
            account=account,
            terminal=terminal,
            amount=as_units(amount, channel),
            event_ms=self._times(rng, account, day),
            channel=channel,
            counterparty=counterparty.astype(np.int64),
            fraud_kind=np.full(n, HONEST, np.int8),
        )

    def terminals_at(
        self, rng: Generator, channel: NDArray[np.int8], area: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """A random terminal of each channel; a POS terminal or cash machine in `area` if that is given."""
        n = channel.size
        draw = rng.random(n)
        first, count = self.block_start[channel], self.block_count[channel]
        # Some web shops are everyone's: the low indexes of the block have most of the custom.
        anywhere: NDArray[np.int64] = first + np.floor(
            count * np.where(channel == ECOM, draw**2.2, draw)
        ).astype(np.int64)
        if area is None:
            return anywhere
        # Terminals of a block are dealt out to the areas in turn, so an area's are every `areas`-th.
        within = -(-(count - area) // self.area_count)
        local = first + area + self.area_count * np.floor(draw * within).astype(np.int64)
        return np.where(((channel == POS) | (channel == ATM)) & (within > 0), local, anywhere)

    def amounts(
        self,
        rng: Generator,
        account: NDArray[np.int64],
        terminal: NDArray[np.int64],
        channel: NDArray[np.int8],
    ) -> NDArray[np.float64]:
        """What each customer would spend there, in currency units, not yet rounded."""
        typical: NDArray[np.float64] = _PRICE[channel] * self.level[account] * self.price[terminal]
        noise: NDArray[np.float64] = np.exp(rng.normal(0.0, 1.0, account.size) * self.spread[account])
        typical *= noise
        return typical

    def _draw_terminals(self, rng: Generator) -> None:
        total = self.settings.terminals
        count = np.maximum((np.array(_TERMINAL_SHARE) * total).astype(np.int64), 1)
        count[POS] = total - count[1:].sum()
        self.block_count = count
        self.block_start = np.cumsum(count) - count
        self.area_count = int(max(1, count[ATM] // 5))
        channel = np.repeat(np.arange(CHANNEL_COUNT), count)
        category = rng.integers(0, _ATM_CATEGORY, total)
        category[channel == ATM] = _ATM_CATEGORY
        category[channel == TRANSFER] = _TRANSFER_CATEGORY
        self.terminal_channel = channel.astype(np.int8)
        self.category = category
        self.price = _CATEGORY_PRICE[category] * np.exp(rng.normal(0.0, 0.35, total))
        abroad = rng.random(total) < np.where(channel == ECOM, 0.35, np.where(channel == POS, 0.05, 0.0))
        self.country = np.where(abroad, rng.integers(1, len(COUNTRIES), total), 0)

    def _draw_accounts(self, rng: Generator) -> None:
        n = self.settings.accounts
        self.area = rng.integers(0, self.area_count, n)
        self.level = np.exp(rng.normal(0.0, 0.5, n))
        self.spread = rng.uniform(0.35, 0.8, n)
        self.frequency = rng.gamma(1.4, self.settings.events_per_account_day / 1.4, n)
        share = rng.gamma(np.array([5.0, 2.0, 0.8, 0.7]), 1.0, (n, CHANNEL_COUNT)) + 1e-6
        self.channel_edges = np.cumsum(share / share.sum(axis=1, keepdims=True), axis=1)[:, :-1]
        self.peak_hour = np.where(rng.random(n) < 0.06, rng.normal(1.0, 2.0, n), rng.normal(13.0, 2.5, n))
        self.second_hour = rng.normal(19.0, 1.8, n)
        self.preferred = np.empty((n, CHANNEL_COUNT, PREFERRED), np.int64)
        for channel in range(CHANNEL_COUNT):
            codes = np.full(n, channel, np.int8)
            for choice in range(PREFERRED):
                self.preferred[:, channel, choice] = self.terminals_at(rng, codes, self.area)

    def _payers(self, rng: Generator, day: int) -> NDArray[np.int64]:
        weekday = (self.day_start_ms(day) // DAY_MS + 3) % 7
        busy = 1.15 if weekday in (4, 5) else (0.8 if weekday == 6 else 1.0)
        # A day of errands: several times the usual number, honestly.
        errands = np.where(rng.random(self.frequency.size) < 0.02, 4.0, 1.0)
        return np.repeat(np.arange(self.frequency.size), rng.poisson(self.frequency * busy * errands))

    def _travelling(self, day: int) -> NDArray[np.bool_]:
        away = np.zeros(self.settings.accounts, np.bool_)
        for departure in range(day - 6, day + 1):
            rng = self.random(STREAM_TRIP, departure)
            leaves = rng.integers(0, self.settings.accounts, self.settings.accounts // 150)
            length = rng.integers(1, 8, leaves.size)
            away[leaves[departure + length > day]] = True
        return away

    def _terminals_of(
        self,
        rng: Generator,
        account: NDArray[np.int64],
        channel: NDArray[np.int8],
        travelling: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        n = account.size
        choice = np.floor(rng.random(n) ** 1.6 * PREFERRED).astype(np.int64)
        usual = self.preferred[account, channel, choice]
        fresh = rng.random(n)
        near = self.terminals_at(rng, channel, self.area[account])
        far = self.terminals_at(rng, channel)
        return np.where(travelling | (fresh > 0.95), far, np.where(fresh > 0.8, near, usual))

    def _times(self, rng: Generator, account: NDArray[np.int64], day: int) -> NDArray[np.int64]:
        n = account.size
        second = rng.random(n) < 0.4
        centre = np.where(second, self.second_hour[account], self.peak_hour[account])
        hours = (centre + rng.normal(0.0, 1.0, n) * np.where(second, 1.8, 3.0)) % 24.0
        return self.day_start_ms(day) + np.minimum((hours * HOUR_MS).astype(np.int64), DAY_MS - 1)


def as_units(amount: NDArray[np.float64], channel: NDArray[np.int8]) -> NDArray[np.int64]:
    """(n,) int64 in 1/10000: whole cents, cash in tens, at least 0.50 and at most 250,000."""
    cents = np.round(np.clip(amount, 0.5, 250_000.0) * 100.0)
    cash = np.maximum(np.round(cents / 1000.0), 1.0) * 1000.0
    return (np.where(channel == ATM, cash, cents) * 100).astype(np.int64)

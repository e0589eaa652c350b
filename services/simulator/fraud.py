"""Kinds of fraud laid over honest days, and the labels by which a bank learns of them.

A campaign begins on a day and lasts at most `CAMPAIGN_DAYS`; all of it is decided by the seed and that day,
so a day's payments are those of the campaigns of the last few days, whichever day is made first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from services.simulator.bank import (
    ATM,
    DAY_MS,
    ECOM,
    HOUR_MS,
    POS,
    STREAM_FRAUD,
    STREAM_LABEL,
    STREAM_TERMINAL_FRAUD,
    TRANSFER,
    Bank,
    Events,
    as_units,
)

KINDS: tuple[str, ...] = (
    "honest",
    "stolen_card",
    "compromised_terminal",
    "account_takeover",
    "card_testing",
    "mule",
)
STOLEN_CARD, COMPROMISED_TERMINAL, ACCOUNT_TAKEOVER, CARD_TESTING, MULE = range(1, 6)
SOURCES: tuple[str, ...] = ("CHARGEBACK", "ANALYST", "CUSTOMER", "OTHER")

CAMPAIGN_DAYS = 4
_TERMINAL_DAYS_MAX = 28
_LABEL_DELAY_MAX_DAYS = 45.0
# Campaigns a day for each account and unit of intensity, at 1.6 payments a day for each account.
_CAMPAIGNS = {STOLEN_CARD: 0.00075, ACCOUNT_TAKEOVER: 0.00040, CARD_TESTING: 0.00013, MULE: 0.00028}
_COMPROMISED_A_DAY = 0.00055
# Of the payments at a compromised terminal, those made with copied cards.
_COPIED_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class LabelRows:
    """What was reported: `row` is the index of the payment in the events given, reported_ms when it was.

    row: (n,) int64. reported_ms: (n,) int64. is_fraud: (n,) bool. source: (n,) int8, index into `SOURCES`.
    """

    row: NDArray[np.int64]
    reported_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]
    source: NDArray[np.int8]


def bank_day(bank: Bank, day: int) -> Events:
    """All payments of one day, honest and not, by rising event time."""
    honest = _compromise_terminals(bank, day, bank.honest_day(day))
    start = bank.day_start_ms(day)
    campaigns = [_campaigns(bank, begun) for begun in range(day - CAMPAIGN_DAYS + 1, day + 1)]
    frauds = Events.concatenate(campaigns)
    today = (frauds.event_ms >= start) & (frauds.event_ms < start + DAY_MS)
    return Events.concatenate([honest, frauds.take(today)]).by_time()


def labels_of(bank: Bank, events: Events, day: int) -> LabelRows:
    """The labels that the payments of one day will get, by rising report time."""
    rng = bank.random(STREAM_LABEL, day)
    settings = bank.settings
    n = len(events)
    fraud = events.fraud_kind > 0
    reported = fraud & (rng.random(n) >= settings.unreported_share)
    disputed = ~fraud & (rng.random(n) < settings.false_claim_share)
    # Alerts that an analyst looked into and cleared.
    cleared = ~fraud & ~disputed & (rng.random(n) < 0.001)
    rows = np.flatnonzero(reported | disputed | cleared)
    delay_days = settings.label_delay_median_days * np.exp(rng.normal(0.0, 0.7, rows.size))
    delay_ms = (np.clip(delay_days, 1 / 24, _LABEL_DELAY_MAX_DAYS) * DAY_MS).astype(np.int64)
    draw = rng.random(rows.size)
    source = np.where(draw < 0.6, 0, np.where(draw < 0.75, 1, 2)).astype(np.int8)
    source[cleared[rows]] = SOURCES.index("ANALYST")
    reported_ms = events.event_ms[rows] + delay_ms
    order = np.argsort(reported_ms, kind="stable")
    return LabelRows(rows[order], reported_ms[order], ~cleared[rows][order], source[order])


def _compromise_terminals(bank: Bank, day: int, events: Events) -> Events:
    """Some payments at the terminals now compromised are by copied cards: same place, a little dearer."""
    bad = np.zeros(bank.settings.terminals, np.bool_)
    for begun in range(day - _TERMINAL_DAYS_MAX + 1, day + 1):
        rng = bank.random(STREAM_TERMINAL_FRAUD, begun)
        mean = _COMPROMISED_A_DAY * bank.settings.terminals * bank.settings.fraud_intensity
        # Not the transfer rails: a whole bank's transfers go through a few of those.
        struck = rng.integers(0, bank.block_start[TRANSFER], rng.poisson(mean))
        length = rng.integers(5, _TERMINAL_DAYS_MAX + 1, struck.size)
        bad[struck[begun + length > day]] = True
    rng = bank.random(STREAM_TERMINAL_FRAUD, day + 500_000)
    copied = bad[events.terminal] & (rng.random(len(events)) < _COPIED_SHARE)
    amount = events.amount.copy()
    dearer = np.exp(rng.normal(0.35, 0.5, int(copied.sum())))
    amount[copied] = as_units(amount[copied] / 10_000 * dearer, events.channel[copied])
    return Events(
        account=events.account,
        terminal=events.terminal,
        amount=amount,
        event_ms=events.event_ms,
        channel=events.channel,
        counterparty=events.counterparty,
        fraud_kind=np.where(copied, COMPROMISED_TERMINAL, events.fraud_kind).astype(np.int8),
    )


def _campaigns(bank: Bank, day: int) -> Events:
    """The payments of every campaign that begins on `day`, over all its days."""
    return Events.concatenate(
        [
            _stolen_cards(bank, day),
            _account_takeovers(bank, day),
            _card_testing(bank, day),
            _mules(bank, day),
        ]
    )


def _victims(bank: Bank, day: int, kind: int, size_low: int, size_high: int) -> tuple[Generator, "_Steps"]:
    rng = bank.random(STREAM_FRAUD + 100 * kind, day)
    mean = _CAMPAIGNS[kind] * bank.settings.accounts * bank.settings.fraud_intensity
    count = int(rng.poisson(mean))
    account = rng.integers(0, bank.settings.accounts, count)
    size = rng.integers(size_low, size_high + 1, count)
    begin = bank.day_start_ms(day) + (rng.random(count) * DAY_MS).astype(np.int64)
    step = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
    campaign = np.repeat(np.arange(count), size)
    return rng, _Steps(account[campaign], begin[campaign], step, campaign, count)


@dataclass(frozen=True, slots=True)
class _Steps:
    """Every payment of some campaigns: (n,) account, campaign's begin, step within it, campaign index."""

    account: NDArray[np.int64]
    begin_ms: NDArray[np.int64]
    step: NDArray[np.int64]
    campaign: NDArray[np.int64]
    campaign_count: int

    def after(self, rng: Generator, mean_ms: float) -> NDArray[np.int64]:
        """(n,) times: each step an exponential pause after the last, the whole cut to the campaign's days."""
        pause = rng.exponential(mean_ms, self.step.size) * (self.step > 0)
        total = np.cumsum(pause)
        first = np.flatnonzero(self.step == 0)
        since = total - np.repeat(total[first], np.diff(np.append(first, total.size)))
        # A campaign begins within its first day, so this much later is still within CAMPAIGN_DAYS.
        return self.begin_ms + np.minimum(since, (CAMPAIGN_DAYS - 1) * DAY_MS - 1).astype(np.int64)


def _events(
    steps: _Steps,
    kind: int,
    terminal: NDArray[np.int64],
    channel: NDArray[np.int8],
    amount: NDArray[np.float64],
    event_ms: NDArray[np.int64],
    counterparty: NDArray[np.int64] | None = None,
) -> Events:
    n = steps.account.size
    return Events(
        account=steps.account,
        terminal=terminal,
        amount=as_units(amount, channel),
        event_ms=event_ms,
        channel=channel,
        counterparty=np.full(n, -1, np.int64) if counterparty is None else counterparty,
        fraud_kind=np.full(n, kind, np.int8),
    )


def _stolen_cards(bank: Bank, day: int) -> Events:
    """A thief shops with the card for a day or two, mostly where the owner does not, for rather more."""
    rng, steps = _victims(bank, day, STOLEN_CARD, 2, 7)
    n = steps.account.size
    channel = rng.choice([POS, ECOM, ATM], n, p=[0.55, 0.3, 0.15]).astype(np.int8)
    near = rng.random(n) < 0.5
    terminal = np.where(
        near,
        bank.terminals_at(rng, channel, bank.area[steps.account]),
        bank.terminals_at(rng, channel),
    )
    amount = bank.amounts(rng, steps.account, terminal, channel) * np.exp(rng.normal(0.95, 0.6, n))
    return _events(steps, STOLEN_CARD, terminal, channel, amount, steps.after(rng, 3 * HOUR_MS))


def _account_takeovers(bank: Bank, day: int) -> Events:
    """Someone else logs in: rising transfers to one new payee and dear web shops, within a night."""
    rng, steps = _victims(bank, day, ACCOUNT_TAKEOVER, 2, 6)
    n = steps.account.size
    channel = rng.choice([TRANSFER, ECOM], n, p=[0.7, 0.3]).astype(np.int8)
    terminal = bank.terminals_at(rng, channel)
    rising = np.exp(rng.normal(0.5, 0.5, n) + 0.3 * steps.step)
    amount = bank.amounts(rng, steps.account, terminal, channel) * rising
    payee = rng.integers(0, bank.settings.accounts, max(steps.campaign_count, 1))[steps.campaign]
    # Two in three come at night, when nobody looks at a phone.
    at = steps.after(rng, 0.7 * HOUR_MS)
    by_night = (rng.random(max(steps.campaign_count, 1)) < 0.65)[steps.campaign]
    moved = at - steps.begin_ms + bank.day_start_ms(day) + (steps.begin_ms % (6 * HOUR_MS))
    return _events(
        steps,
        ACCOUNT_TAKEOVER,
        terminal,
        channel,
        amount,
        np.where(by_night, moved, at),
        np.where(channel == TRANSFER, payee, -1),
    )


def _card_testing(bank: Bank, day: int) -> Events:
    """A stolen number is tried with tiny web payments at one shop; then comes the big one elsewhere."""
    rng, steps = _victims(bank, day, CARD_TESTING, 5, 14)
    n = steps.account.size
    channel = np.full(n, ECOM, np.int8)
    shop = bank.terminals_at(rng, np.full(max(steps.campaign_count, 1), ECOM, np.int8))
    last = np.append(steps.step[1:] == 0, True)[:n]
    elsewhere = bank.terminals_at(rng, channel)
    terminal = np.where(last, elsewhere, shop[steps.campaign])
    big = bank.amounts(rng, steps.account, elsewhere, channel) * np.exp(rng.normal(1.1, 0.5, n))
    amount = np.where(last, big, rng.uniform(0.5, 6.0, n))
    return _events(steps, CARD_TESTING, terminal, channel, amount, steps.after(rng, 0.12 * HOUR_MS))


def _mules(bank: Bank, day: int) -> Events:
    """Money that came in goes out again at once, in even sums to several payees, and as cash."""
    rng, steps = _victims(bank, day, MULE, 3, 9)
    n = steps.account.size
    channel = rng.choice([TRANSFER, ATM], n, p=[0.75, 0.25]).astype(np.int8)
    terminal = bank.terminals_at(rng, channel, bank.area[steps.account])
    amount = np.round(rng.lognormal(5.3, 0.7, n) / 10.0) * 10.0
    payee = rng.integers(0, bank.settings.accounts, n)
    return _events(
        steps,
        MULE,
        terminal,
        channel,
        amount,
        steps.after(rng, 2.5 * HOUR_MS),
        np.where(channel == TRANSFER, payee, -1),
    )

"""A worker's conversations: turns wait for one another, and every epoch can be undone."""

import asyncio
import random

import pytest
from msgspec.structs import replace

from services.chat.conversation import Conversation, Conversations, Said, decode, encode
from weir.crypto import Pseudonymizer, Secret
from weir.crypto.customer import CustomerKeys
from weir.errors import IntegrityError


def said(number: int) -> Conversation:
    return Conversation(
        customer_id="anna", turns=(Said("customer", f"turn {number}", number),), touched_ms=number
    )


async def test_a_turn_begins_with_what_the_one_before_has_made():
    table = Conversations(10)
    table.attach(0, {})
    first, second = table.begin(1, 0, b"a"), table.begin(1, 0, b"a")
    other = table.begin(1, 0, b"b")
    assert (await first.before).turns == ()
    assert (await other.before).turns == ()
    assert not second.before.done()
    first.after.set_result(said(1))
    assert (await second.before) == said(1)


async def test_rolled_back_turns_leave_what_stood_before_them():
    table = Conversations(10)
    table.attach(0, {b"a": said(1)})
    kept = table.begin(1, 0, b"a")
    kept.after.set_result(said(2))
    table.release(1)
    table.begin(2, 0, b"a")
    table.begin(2, 0, b"new")
    table.begin(3, 0, b"a")
    table.roll_back(2)
    assert len(table) == 1
    assert await table.begin(4, 0, b"a").before == said(2)


async def test_the_quietest_are_let_go_but_none_that_is_being_answered():
    table = Conversations(2)
    table.attach(0, {b"old": said(1), b"older": said(0)})
    table.begin(1, 0, b"new")
    assert table.let_go(1, 0) == [b"older"]
    table.roll_back(1)
    assert len(table) == 2
    busy = Conversations(1)
    busy.attach(0, {})
    busy.begin(1, 0, b"a")
    busy.begin(1, 0, b"b")
    assert busy.let_go(1, 0) == []


async def test_a_partition_that_was_lost_is_not_brought_back_by_a_roll_back():
    table = Conversations(10)
    table.attach(0, {})
    table.begin(1, 0, b"a")
    table.drop(0)
    table.roll_back(1)
    assert len(table) == 0


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_epochs_commits_and_roll_backs_is_that_of_a_simple_model(seed):
    chance = random.Random(seed)
    table, committed = Conversations(1000), dict[bytes, int]()
    table.attach(0, {})
    open_epochs: list[tuple[int, dict[bytes, int]]] = []
    for step in range(1, 200):
        if open_epochs and chance.random() < 0.15:
            count = chance.randrange(len(open_epochs) + 1)
            for _, changes in open_epochs[:count]:
                committed |= changes
            table.release(open_epochs[count - 1][0] if count else 0)
            if chance.random() < 0.5:
                table.roll_back(open_epochs[count][0] if count < len(open_epochs) else step)
                open_epochs.clear()
            else:
                del open_epochs[:count]
        changes: dict[bytes, int] = {}
        for key in chance.sample([b"a", b"b", b"c", b"d"], chance.randint(1, 4)):
            link = table.begin(step, 0, key)
            expected = dict(committed)
            for _, earlier in open_epochs:
                expected |= earlier
            assert (await link.before).touched_ms == expected.get(key, 0)
            link.after.set_result(said(step))
            changes[key] = step
        open_epochs.append((step, changes))
        await asyncio.sleep(0)


KEYS = CustomerKeys(Pseudonymizer("acme", Secret(bytes(range(32)))))


def test_a_row_comes_back_as_it_was_and_a_broken_one_does_not():
    whole = replace(said(3), values={"[CARD_1]": "4111111111111111"})
    for conversation in (said(3), whole):
        row = encode(conversation, b"key", KEYS)
        assert decode(row, b"key", KEYS, "here") == conversation
        for broken in (b"", b"\x01", row[:-3], b"\x99" + row, b"\x93\x01" + row[2:]):
            with pytest.raises(IntegrityError, match="here"):
                decode(broken, b"key", KEYS, "here")


def test_what_placeholders_stand_for_opens_for_its_customer_alone():
    conversation = replace(said(3), values={"[CARD_1]": "4111111111111111"})
    row = encode(conversation, b"key", KEYS)
    assert b"4111" not in row
    assert row != encode(conversation, b"key", KEYS)
    other = row.replace(b"anna", b"anne")
    another_bank = CustomerKeys(Pseudonymizer("acme", Secret(bytes(32))))
    for customers_row, key, keys in (
        (other, b"key", KEYS),
        (row, b"kez", KEYS),
        (row, b"key", another_bank),
        (row[:-1] + bytes([row[-1] ^ 1]), b"key", KEYS),
    ):
        with pytest.raises(IntegrityError, match="another"):
            decode(customers_row, key, keys, "here")
    with pytest.raises(IntegrityError):
        KEYS.open("anna", b"short", b"key")

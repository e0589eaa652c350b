"""Secure aggregation: noise from each bank, the exact sum from all, and what happens when one is gone."""

import secrets

import numpy as np
import pytest

from services.training.federate import masks
from services.training.federate.errors import UpdateRefused

BANKS = (1, 2, 3, 4)
PURPOSE = "mask run 1"


@pytest.fixture
def round_():
    """Keys, seeds, vectors and masked words of four banks."""
    random = np.random.default_rng(3)
    keys = {bank: masks.new_key() for bank in BANKS}
    publics = {bank: public for bank, (_, public) in keys.items()}
    seeds = {bank: secrets.token_bytes(32) for bank in BANKS}
    words = {bank: masks.to_words(random.normal(0, 1e5, 400)) for bank in BANKS}
    sent = {
        bank: masks.masked(words[bank], bank, keys[bank][0], publics, seeds[bank], PURPOSE) for bank in BANKS
    }
    return keys, publics, seeds, words, sent


def test_the_sum_of_masked_updates_is_exact(round_):
    _, publics, seeds, words, sent = round_
    total = masks.unmasked(sent, seeds, {}, publics, PURPOSE)
    assert (total == sum(words.values())).all()


def test_what_one_bank_sends_tells_nothing_of_its_update(round_):
    """The same update twice comes as unlike words; and every byte value comes about as often."""
    keys, publics, _, words, sent = round_
    again = masks.masked(words[1], 1, keys[1][0], publics, secrets.token_bytes(32), PURPOSE)
    assert not (sent[1] == words[1]).any()
    assert not (sent[1] == again).any()
    constant = np.zeros(40_000, np.uint64)
    noise = masks.masked(constant, 1, keys[1][0], publics, secrets.token_bytes(32), PURPOSE)
    counts = np.bincount(noise.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 400  # chi-square of 255 degrees: above once in 1e8


def test_pairwise_masks_alone_hide_a_bank_whose_own_seed_is_known(round_):
    """What the server learns of a bank that sent is its own seed; that must not be enough."""
    _, _, seeds, words, sent = round_
    assert not (sent[2] - masks.stream(seeds[2], 400) == words[2]).any()


def test_the_sum_of_those_who_sent_is_exact_when_a_bank_drops_out(round_):
    keys, publics, seeds, words, sent = round_
    left = {bank: sent[bank] for bank in BANKS if bank != 3}
    total = masks.unmasked(left, {bank: seeds[bank] for bank in left}, {3: keys[3][0]}, publics, PURPOSE)
    assert (total == words[1] + words[2] + words[4]).all()


def test_streams_of_another_round_are_others(round_):
    keys, publics, _, _, _ = round_
    one, two = (masks.agreed(keys[1][0], publics[2], f"mask run {number}") for number in (1, 2))
    assert one != two
    assert one == masks.agreed(keys[2][0], publics[1], PURPOSE)


def test_fixed_point_keeps_a_number_to_its_24th_bit():
    values = np.array([0.0, -1.5, 3e7, 2.0**-24, -(2.0**30)])
    assert (masks.from_words(masks.to_words(values)) == values).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**36])
def test_a_number_that_no_sum_can_hold_is_refused(bad):
    with pytest.raises(UpdateRefused, match="not finite or far too large"):
        masks.to_words(np.array([1.0, bad]))


def test_any_threshold_of_shares_gives_the_secret_back_and_fewer_do_not():
    secret = secrets.token_bytes(32)
    shares = masks.shared(secret, 3, range(1, 6))
    for chosen in ((1, 2, 3), (1, 3, 5), (2, 4, 5)):
        assert masks.joined({holder: shares[holder] for holder in chosen}, 3) == secret
    with pytest.raises(UpdateRefused, match="2 banks are left"):
        masks.joined({holder: shares[holder] for holder in (1, 2)}, 3)
    assert secret not in {share[-32:] for share in shares.values()}


def test_shares_that_do_not_belong_together_give_no_secret():
    one, two = (masks.shared(secrets.token_bytes(32), 2, (1, 2)) for _ in range(2))
    with pytest.raises(UpdateRefused, match="do not belong together"):
        masks.joined({1: one[1], 2: two[2]}, 2)


def test_a_sealed_share_opens_for_its_holder_and_its_purpose_alone():
    sender, holder, stranger = (masks.new_key() for _ in range(3))
    box = masks.sealed(b"share", sender[0], holder[1], "run/1/1/2")
    assert masks.opened(box, holder[0], sender[1], "run/1/1/2") == b"share"
    for private, about in ((stranger[0], "run/1/1/2"), (holder[0], "run/2/1/2")):
        with pytest.raises(UpdateRefused, match="not sealed for this bank"):
            masks.opened(box, private, sender[1], about)

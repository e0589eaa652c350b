"""The bench's own arithmetic: what is counted, what is chosen, what a profile's lines say."""

import os

import numpy as np
import pytest

from bench import fill, measure, profiling, scale, workers


def test_a_cost_counts_the_model_server_only_for_events_a_cpu_second():
    cost = measure.Cost(events=1000, seconds=2.0, cpu_s=0.01, rss_mb=1.0, beside_cpu_s=0.03)
    assert (cost.events_s, cost.cpu_us, cost.beside_us) == pytest.approx((500.0, 10.0, 30.0))
    assert cost.events_cpu_s == pytest.approx(25_000)


def test_cpu_and_peak_memory_of_a_process_are_read():
    before = measure.cpu_s([os.getpid()])
    np.ones((500, 500)) @ np.ones((500, 500))
    assert measure.cpu_s([os.getpid()]) >= before > 0
    assert measure.peak_rss_mb([os.getpid()]) > 10


def test_only_named_rows_are_measured_in_the_order_of_the_table():
    assert [each.key for each in workers.chosen(["weir-exactly-once", "aiokafka"])] == [
        "aiokafka",
        "weir-exactly-once",
    ]
    assert len({each.key for each in workers.ALL}) == len(workers.ALL)


def test_a_row_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no worker flink; there are aiokafka"):
        workers.chosen(["flink"])


def test_a_sample_counts_for_the_innermost_frame_that_names_a_stage():
    """Waiting counts for nothing."""
    profile = profiling.read(
        [
            "run (weir/streams/app.py:9);__call__ (services/risk/writing.py:88);"
            "seal_batch (weir/crypto/envelope.py:201);EVP_EncryptUpdate (libcrypto.so.3) 6",
            "run (weir/streams/app.py:9);observe (weir/features/payments.py:175);0x7f81 4",
            "run_forever (uvloop/loop.pyx:9) 10",
            "run_forever (uvloop/loop.pyx:9);epoll_pwait (libc.so.6) 70",
        ]
    )
    assert profile.samples == 20
    assert profile.stages == {"seal": 0.3, "features": 0.2, profiling.ELSEWHERE: 0.5}
    assert profile.functions["EVP_EncryptUpdate (libcrypto.so.3)"] == 0.3
    assert profile.functions["observe (weir/features/payments.py)"] == 0.2


def test_a_profile_without_samples_is_refused():
    with pytest.raises(ValueError, match="no sample"):
        profiling.read(["0x7f81 3"])


def test_every_account_pays_once_before_any_pays_again():
    slices = list(fill.accounts_in_order(250_000, 50_000, np.random.default_rng(1)))
    paid = np.concatenate(slices)
    assert np.array_equal(np.sort(paid[:250_000]), np.arange(250_000))
    assert paid.size == 300_000
    assert paid.max() < 250_000


@pytest.mark.parametrize(
    ("last", "said"), [(10.9, "stays flat (1.09"), (14.0, "grows to 1.40"), (7.0, "falls to 0.70")]
)
def test_a_curve_is_told_in_words(last, said):
    assert said in scale.verdict(10.0, last)


def test_a_curve_that_no_disk_could_hold_is_not_begun():
    with pytest.raises(SystemExit, match="Make room"):
        scale._need_disk(10**12)

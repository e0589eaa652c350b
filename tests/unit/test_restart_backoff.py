"""An ended process is started again: soon, then later and later, up to a cap."""

from hypothesis import given
from hypothesis import strategies as st

from infra.local.logfile import RotatingLog
from infra.local.supervisor import Backoff, RestartPolicy

POLICY = RestartPolicy(first_s=0.25, cap_s=30.0, stable_s=30.0)


def test_waits_double_up_to_the_cap():
    backoff = Backoff(POLICY)
    waits = [backoff.ended(started_s=100.0, now_s=100.1) for _ in range(10)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_stable_run_forgets_the_failures_before():
    backoff = Backoff(POLICY)
    for _ in range(6):
        backoff.ended(started_s=0.0, now_s=1.0)
    assert backoff.ended(started_s=1.0, now_s=31.0) == 0.25


@given(st.lists(st.floats(0, 1e6), max_size=200))
def test_the_wait_is_never_over_the_cap(lives):
    backoff = Backoff(POLICY)
    assert all(0 < backoff.ended(0.0, life) <= POLICY.cap_s for life in lives)


def test_failing_for_weeks_does_not_overflow():
    backoff = Backoff(POLICY)
    assert {backoff.ended(0.0, 1.0) for _ in range(20_000)} <= {0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0}


def test_a_log_is_rotated_by_size_and_keeps_its_newest_files(tmp_path):
    log = RotatingLog(tmp_path / "part.log", bytes_max=100, file_count=3)
    for index in range(40):
        log.write(f"line {index:04}\n".encode())
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["part.log", "part.log.1", "part.log.2"]
    assert all(each.stat().st_size <= 100 for each in files)
    assert (tmp_path / "part.log").read_text().endswith("line 0039\n")


def test_a_log_on_a_full_disk_loses_lines_and_not_the_writer(tmp_path):
    log = RotatingLog(tmp_path / "part.log")
    log.path = log.path.parent / "gone" / "part.log"
    log.close()
    log.write(b"lost\n")
    assert log.lost_bytes == 5

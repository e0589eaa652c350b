"""Features in parts, what must be alike on every machine, and a process that joins nothing."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from infra.local.layout import ROOT
from services.training.cluster import features, link
from services.training.cluster.features import COLUMNS, features_on, folder_stamp, part_features, read_part
from services.training.data import Events, read_events, stream_events
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings
from tests.support.handbook import sleeping_bank
from tests.support.training import small_bank
from weir.errors import ConfigError, MissingPart
from weir.features.columns import Payments
from weir.features.offline import features_of
from weir.features.payments import PaymentState
from weir.features.spec import DEFAULT, FEATURES


class Done:
    """A task that is done."""

    def __init__(self, result) -> None:
        self.result = result


class Here:
    """A cluster's tasks, done at once in this process."""

    def __init__(self, parts: int) -> None:
        self.thread_count, self.held = parts, {}

    def submit(self, function, *arguments):
        return Done(function(*(each.result if isinstance(each, Done) else each for each in arguments)))

    def ask_all(self, function, *arguments):
        return {"one": function(*arguments)}

    def results(self, futures):
        return [(future, future.result) for future in futures]


@pytest.fixture(scope="module", params=["weir", "handbook"])
def events(request, tmp_path_factory) -> Events:
    folder = tmp_path_factory.mktemp(request.param) / "bank"
    if request.param == "handbook":
        return read_events(sleeping_bank(folder))
    folder.mkdir()
    return read_events(small_bank(folder, days=40))


@pytest.fixture
def no_features_here(monkeypatch):
    monkeypatch.setattr(features, "features_of", lambda *_, **__: pytest.fail("computed by the client"))


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_features_of_parts_put_together_are_those_of_the_whole_bit_for_bit(events, parts, no_features_here):
    whole = features_of(events.payments, events.labels)
    made = features_on(Here(parts), events.folder, events.payments, events.labels, DEFAULT)
    assert made.tobytes() == whole.tobytes()
    assert (whole[:, FEATURES.index("terminal_risk_30d")] > 0).any()
    assert (whole[:, FEATURES.index("account_fraud_count_30d")] > 0).any()


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_history_that_ends_earlier_is_cut_on_the_workers(events, share, no_features_here):
    count = int(share * events.payments.row_count)
    at_ms = int(events.event_ms[count])
    payments = events.payments.rows(slice(0, int(np.searchsorted(events.event_ms, at_ms))))
    known = events.labels.rows(events.labels.reported_ms < at_ms)
    made = features_on(Here(3), events.folder, payments, known, DEFAULT)
    assert made.tobytes() == features_of(payments, known).tobytes()


def test_events_that_no_worker_can_read_are_computed_where_they_are(events):
    some = events.payments.rows(np.arange(0, events.payments.row_count, 3))
    made = features_on(Here(3), events.folder, some, events.labels, DEFAULT)
    assert made.tobytes() == features_of(some, events.labels).tobytes()


def test_each_payment_is_in_one_part_by_account_and_in_one_by_terminal(events):
    stamp = folder_stamp(events.folder)
    parts = [read_part(events.folder, stamp, part, 4) for part in range(4)]
    for side in COLUMNS:
        sizes = [part.payments[side].row_count for part in parts]
        assert sum(sizes) == events.payments.row_count
        assert max(sizes) < events.payments.row_count / 2
        keys = [set(getattr(part.payments[side], side).tolist()) for part in parts]
        assert sum(map(len, keys)) == len(set.union(*keys))


def test_a_part_holds_no_other_parts_accounts_or_terminals_in_its_tables(events, monkeypatch):
    seen = []
    made = PaymentState.observe

    def observe(self, batch: Payments):
        rows = made(self, batch)
        seen.append((self.account_count, self.terminal_count))
        return rows

    monkeypatch.setattr(PaymentState, "observe", observe)
    part_features(read_part(events.folder, folder_stamp(events.folder), 0, 4), 2**62, 2**62, DEFAULT)
    accounts, terminals = len(np.unique(events.payments.account)), len(np.unique(events.payments.terminal))
    assert max(one for one, _ in seen) < accounts / 2
    assert max(other for _, other in seen) < terminals / 2
    assert all(1 in pair for pair in seen)


def test_every_column_is_an_accounts_or_a_terminals():
    names = [name for columns in COLUMNS.values() for name in FEATURES[columns]]
    assert tuple(names) == FEATURES
    assert all(name.startswith("terminal_") for name in FEATURES[COLUMNS["terminal"]])
    assert not any(name.startswith("terminal_") for name in FEATURES[COLUMNS["account"]])


def test_events_streamed_are_the_events_read_at_once(events):
    chunks = list(stream_events(events.folder))
    payments = np.concatenate([chunk.account for chunk in chunks if isinstance(chunk, Payments)])
    assert np.array_equal(np.sort(payments), np.sort(events.payments.account))
    assert sum(each.row_count for each in chunks if not isinstance(each, Payments)) == events.labels.row_count


def test_a_folders_stamp_tells_another_file_and_no_folder(events, tmp_path):
    for path in events.folder.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stamp = folder_stamp(events.folder)
    assert folder_stamp(tmp_path) == stamp
    last = max(tmp_path.glob("*.parquet"))
    held = last.read_bytes()
    last.write_bytes(held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
    assert folder_stamp(tmp_path) not in (None, stamp)
    last.unlink()
    assert folder_stamp(tmp_path) not in (None, stamp)
    assert folder_stamp(tmp_path / "none") is None


def test_files_that_changed_under_a_worker_are_refused_in_one_line(events):
    with pytest.raises(TrainingError, match=r"sees other files there\. Mount the same folder"):
        read_part(events.folder, "another", 0, 2)
    with pytest.raises(TrainingError, match=r"does not see it\. Mount the same folder"):
        read_part(events.folder / "none", "another", 0, 2)


def test_a_worker_of_another_version_does_no_task_and_says_which():
    assert link.checked(link.code_stamp(), max, 1, 2) == 2
    other = link.code_stamp().replace("numpy ", "numpy 0.")
    with pytest.raises(TrainingError, match=r"A worker has numpy .*, this process numpy 0\."):
        link.checked(other, max, 1, 2)


@pytest.mark.parametrize(
    "address", ["scheduler:8786", "http://scheduler:8786", "tcp://scheduler", "tcp://:1/"]
)
def test_an_address_that_names_no_scheduler_is_refused_as_a_setting(address, monkeypatch):
    monkeypatch.setenv("WEIR_TRAINING_DASK_SCHEDULER", address)
    with pytest.raises(ConfigError, match="WEIR_TRAINING_DASK_SCHEDULER"):
        TrainingSettings.load()


@pytest.mark.parametrize(
    ("address", "files"),
    [("tcp://127.0.0.1:1", ("dask_ca", "dask_certificate", "dask_key")), ("tls://127.0.0.1:1", ("dask_ca",))],
    ids=["without-tls", "a-file-too-few"],
)
def test_files_for_tls_go_together(address, files, tmp_path):
    settings = TrainingSettings(dask_scheduler=address, **dict.fromkeys(files, tmp_path / "file"))
    with pytest.raises(ConfigError, match="go together"):
        link.join(settings)


def test_a_missing_package_is_one_line(monkeypatch):
    def without(name: str):
        raise ImportError(name)

    link._distributed.cache_clear()
    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingPart, match=r"pip install 'weir\[cluster\]'"):
        link.join(TrainingSettings(dask_scheduler="tcp://127.0.0.1:1"))
    assert link.current() is None


def test_alone_nothing_of_dask_is_imported(tmp_path):
    """A whole training, then a look at what was loaded."""
    small_bank(tmp_path / "bank")
    code = """
import sys
from services.training.__main__ import app
app(["train", "risk", "--data", "bank", "--quick", "--repository", "models"], standalone_mode=False)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"dask", "distributed"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"

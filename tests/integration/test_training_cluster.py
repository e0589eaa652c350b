"""Training on a real Dask scheduler with two workers: the same bits as alone, also when one is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.local.layout import ROOT
from infra.local.ports import free_port
from services.training.cluster import features, link
from services.training.cluster.features import begin, features_on
from services.training.cluster.link import Cluster, code_stamp, join, leave
from services.training.command import Protocol, table_of
from services.training.data import read_events
from services.training.errors import TrainingError
from services.training.export import to_onnx
from services.training.fit import Recipe
from services.training.prepare.leaks import find_leaks
from services.training.search import FOUND, Search
from services.training.settings import TrainingSettings
from services.training.teacher import Lesson, TeacherRecipe
from services.training.train import Table, fit
from tests.support.dask_cluster import DaskScheduler, DaskWorker, dask_cluster, own_certificate
from tests.support.handbook import sleeping_bank
from tests.support.servers import running_server
from tests.support.training import small_bank, small_table
from weir.errors import NeighbourUnavailable
from weir.features.offline import features_of
from weir.features.payments import DEFAULT, FEATURES

RECIPE = Recipe(threads=1, bags=3, rounds_max=60, pairs_max=4)
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
LESSON = Lesson(TeacherRecipe(threads=1, rounds_max=20, leaves=4), 0.5)


@pytest.fixture(autouse=True)
def alone_afterwards():
    yield
    leave()


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return small_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A cluster for the tests that kill nothing."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as (scheduler, workers):
        yield scheduler, workers


@pytest.fixture
def cluster(standing) -> Cluster:
    return joined(standing[0])


@pytest.fixture
def not_here(monkeypatch):
    monkeypatch.setattr(features, "features_of", lambda *_, **__: pytest.fail("computed by the client"))


def joined(scheduler: DaskScheduler) -> Cluster:
    made = join(TrainingSettings(dask_scheduler=scheduler.address, threads=1))
    assert made is not None
    return made


def model_of(table: Table) -> bytes:
    return to_onnx(fit(table, RECIPE, honest_max=2500, lesson=LESSON).model, name="risk", feature_spec="x")


def searched(table: Table, folder: Path) -> dict:
    work = Search(table, folder, fold_count=2, honest_max=1500, seed=7, threads=1)
    work.run(6, minutes=10, progress=lambda name, done, best: None)
    return json.loads((folder / FOUND).read_text())


def kill_when_busy(monkeypatch, cluster: Cluster, workers: list[DaskWorker], tasks: int) -> list[int]:
    """Kills one worker that computes, at the `tasks`-th wait or later; the process ids that were killed."""
    killed: list[int] = []
    waits, first_done = [], Cluster.first_done
    address = {pid: where for where, pid in cluster.client.run(os.getpid).items()}

    def watched(self, futures):
        waits.append(len(futures))
        while len(waits) >= tasks and not killed and not any(future.done() for future in futures):
            processing = cluster.client.processing()
            for worker in workers:
                if processing[address[worker.pid]] and not killed:
                    killed.append(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
        return first_done(self, futures)

    monkeypatch.setattr(Cluster, "first_done", watched)
    return killed


def remote(process: psutil.Process) -> set[str]:
    """Addresses to which a process holds connections, and on which it listens."""
    return {
        end.ip
        for connection in process.net_connections("inet")
        for end in (connection.raddr, connection.laddr if connection.status == psutil.CONN_LISTEN else None)
        if end
    }


@pytest.mark.parametrize("layout", ["weir", "handbook"])
def test_features_of_two_workers_are_those_of_one_process_bit_for_bit(
    layout, cluster, bank, tmp_path, not_here
):
    events = read_events(bank if layout == "weir" else sleeping_bank(tmp_path / "handbook"))
    made = events.features()
    assert cluster.held
    assert remote(psutil.Process()) <= LOOPBACK
    assert made.tobytes() == features_of(events.payments, events.labels).tobytes()


def test_the_search_for_leaks_asks_the_workers_for_histories_that_end_earlier(cluster, bank, not_here):
    events = read_events(bank)
    find_leaks(events, events.features_of, FEATURES, whole=events.features()).require_none()


def test_a_model_with_its_teacher_is_the_same_to_the_byte(standing):
    table = small_table()
    alone = model_of(table)
    joined(standing[0])
    assert model_of(table) == alone


def test_a_search_finds_the_same_as_alone(standing, tmp_path):
    table = small_table()
    alone = searched(table, tmp_path / "alone")
    joined(standing[0])
    assert searched(table, tmp_path / "workers") == alone


def test_a_search_that_was_killed_goes_on_with_workers(standing, tmp_path):
    table = small_table()
    joined(standing[0])
    study = Search(table, tmp_path, fold_count=2, honest_max=1500, seed=7, threads=1)._study("teacher")
    rate = study.ask().suggest_float("learning_rate", 0.02, 0.15, log=True)
    about = searched(table, tmp_path)
    assert about["trials"]["teacher"]["fail"] == 1
    again = Search(table, tmp_path, fold_count=2, honest_max=1500, seed=7, threads=1)._study("teacher").trials
    assert [trial.params["learning_rate"] for trial in again].count(rate) == 2


@pytest.mark.timeout(240)
def test_a_worker_killed_while_it_computes_features_costs_nothing_but_time(
    bank, tmp_path, monkeypatch, not_here
):
    events = read_events(bank)
    whole = features_of(events.payments, events.labels)
    with dask_cluster(tmp_path) as (scheduler, workers):
        cluster = joined(scheduler)
        killed = kill_when_busy(monkeypatch, cluster, workers, 1)
        made = events.features()
        assert len(killed) == 1
        assert made.tobytes() == whole.tobytes()
        assert scheduler.worker_count() == 1
        leave()


@pytest.mark.timeout(240)
def test_a_worker_killed_in_a_search_changes_nothing_that_is_found(tmp_path, monkeypatch):
    table = small_table()
    alone = searched(table, tmp_path / "alone")
    with dask_cluster(tmp_path / "dask") as (scheduler, workers):
        cluster = joined(scheduler)
        killed = kill_when_busy(monkeypatch, cluster, workers, 3)
        found = searched(table, tmp_path / "workers")
        assert len(killed) == 1
        assert found == alone
        leave()


@pytest.mark.timeout(240)
def test_when_the_last_worker_dies_a_person_is_told_and_not_left_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "WORKER_WAIT_S", 0.5)
    table = small_table()
    with dask_cluster(tmp_path / "dask", workers=1) as (scheduler, workers):
        cluster = joined(scheduler)
        kill_when_busy(monkeypatch, cluster, workers, 2)
        with pytest.raises(NeighbourUnavailable, match="the last worker went away"):
            searched(table, tmp_path / "search")
        leave()


@pytest.mark.timeout(240)
def test_when_the_scheduler_dies_a_person_is_told(bank, tmp_path, monkeypatch):
    with dask_cluster(tmp_path / "dask") as (scheduler, _):
        cluster = joined(scheduler)
        begin(cluster, bank)
        scheduler.kill()
        events = read_events(bank)
        with pytest.raises(NeighbourUnavailable, match="the Dask scheduler went away"):
            features_on(cluster, bank, events.payments, events.labels, DEFAULT)
        # Whatever is asked of it next, and however long it has been gone.
        for ask in (lambda: cluster.thread_count, lambda: cluster.ask_all(code_stamp)):
            with pytest.raises(NeighbourUnavailable, match="the Dask scheduler went away"):
                ask()
        leave()


def test_no_scheduler_and_no_worker_are_each_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "CONNECT_S", 1)
    monkeypatch.setattr(link, "WORKER_WAIT_S", 0.5)
    with pytest.raises(NeighbourUnavailable, match="no Dask scheduler answers there"):
        join(TrainingSettings(dask_scheduler=f"tcp://127.0.0.1:{free_port()}"))
    with (
        running_server(DaskScheduler(tmp_path / "scheduler")) as scheduler,
        pytest.raises(NeighbourUnavailable, match="has no worker after"),
    ):
        joined(scheduler)
    assert link.current() is None


def test_a_worker_with_other_code_is_refused_by_name(tmp_path):
    other = tmp_path / "checkout"
    for part in ("services", "weir", "schemas"):
        shutil.copytree(ROOT / part, other / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "services/training/fit.py").open("a") as file:
        file.write("\nANOTHER = True\n")
    with running_server(DaskScheduler(tmp_path / "scheduler")) as scheduler:
        worker = DaskWorker(tmp_path / "worker", scheduler, environment={"PYTHONPATH": str(other)})
        refused = r"^The worker tcp://\S+ has Weir .*, this process Weir "
        with running_server(worker), pytest.raises(TrainingError, match=refused):
            joined(scheduler)


def test_a_worker_without_weir_is_refused_by_name(tmp_path):
    (tmp_path / "shadow" / "services").mkdir(parents=True)
    (tmp_path / "shadow" / "services" / "__init__.py").touch()
    with running_server(DaskScheduler(tmp_path / "scheduler")) as scheduler:
        path = {"PYTHONPATH": str(tmp_path / "shadow")}
        worker = DaskWorker(tmp_path / "worker", scheduler, environment=path)
        refused = r"^The worker tcp://\S+ does not run this Weir "
        with running_server(worker), pytest.raises(TrainingError, match=refused):
            joined(scheduler)


def test_a_folder_that_the_workers_do_not_see_or_see_otherwise_is_refused(standing, bank, tmp_path):
    """/proc/self/cwd is another folder in each process, as a path is where another disk is mounted."""
    here = Path("/proc/self/cwd")
    shutil.copytree(bank, tmp_path / "bank")
    settings = TrainingSettings(dask_scheduler=standing[0].address)
    with pytest.raises(TrainingError, match=r"^/proc/self/cwd/bank: the worker tcp://\S+ does not see it\."):
        table_of(here / "bank", settings, Protocol.LATER)
    shutil.copytree(bank, standing[1][1].folder / "bank")
    next((standing[1][1].folder / "bank").glob("labels-*")).unlink()
    with pytest.raises(TrainingError, match=r"the worker \S+ (does not see it|sees other files there)\."):
        table_of(here / "bank", settings, Protocol.LATER)
    assert len(features.folder_stamp(bank) or "") == 64


@pytest.mark.timeout(240)
def test_the_commands_profit_by_the_setting_alone_and_nothing_leaves_this_machine(standing, bank, tmp_path):
    scheduler, workers = standing
    words = [
        sys.executable,
        "-m",
        "services.training",
        "train",
        "risk",
        "--data",
        str(bank),
        "--quick",
        "--json",
    ]
    plain = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WEIR_TRAINING_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    made = {}
    for name, more in {"alone": {}, "workers": {"WEIR_TRAINING_DASK_SCHEDULER": scheduler.address}}.items():
        done = subprocess.run(
            [*words, "--repository", str(tmp_path / name)], env=plain | more, cwd=tmp_path,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "distributed" not in done.stderr
        assert "Warning" not in done.stderr
        made[name] = (tmp_path / name / "risk" / "1" / "model.onnx").read_bytes()
    assert made["workers"] == made["alone"]
    done_tasks = [worker.log_path.read_text().count("folder_stamp") for worker in workers]
    assert all(done_tasks)
    for process in (scheduler, *workers):
        assert remote(psutil.Process(process.pid)) <= LOOPBACK


def test_behind_mutual_tls_only_who_holds_a_certificate_joins(bank, tmp_path, monkeypatch):
    files = own_certificate(tmp_path / "pki")
    words = [str(word) for word in ("--tls-ca-file", files[0], "--tls-cert", files[0], "--tls-key", files[1])]
    monkeypatch.setattr(link, "CONNECT_S", 2)
    with (
        running_server(DaskScheduler(tmp_path / "scheduler", tls=words)) as scheduler,
        running_server(DaskWorker(tmp_path / "worker", scheduler, words=words)),
    ):
        mine = {"dask_ca": files[0], "dask_certificate": files[0], "dask_key": files[1]}
        assert join(TrainingSettings(dask_scheduler=scheduler.address, **mine)) is not None
        assert read_events(bank).features().shape[1] == len(FEATURES)
        stranger = own_certificate(tmp_path / "stranger")
        theirs = {"dask_ca": files[0], "dask_certificate": stranger[0], "dask_key": stranger[1]}
        for settings in (
            TrainingSettings(dask_scheduler=scheduler.address, **theirs),
            TrainingSettings(dask_scheduler=scheduler.address.replace("tls", "tcp")),
        ):
            with pytest.raises(NeighbourUnavailable, match="no Dask scheduler answers there"):
                join(settings)


def test_a_cluster_that_is_joined_is_joined_once(standing):
    settings = TrainingSettings(dask_scheduler=standing[0].address)
    one = join(settings)
    assert join(settings) is one
    assert link.current() is one
    assert join(TrainingSettings()) is None
    assert link.current() is None

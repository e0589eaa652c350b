"""The Dask cluster that the settings name: joined, its workers' code compared, tasks handed over.

Whatever a task needs is in its arguments or in another task's result, and Dask keeps how each was made. So a
worker that dies costs time alone: what it did or held is made again elsewhere. Nothing is opened here, no
dashboard, no port; all that goes out goes to the scheduler.

Source: Rocklin 2015, Dask: parallel computation with blocked algorithms and task scheduling.
"""

import atexit
import hashlib
import importlib
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.training.errors import TrainingError
from services.training.settings import TrainingSettings
from weir.errors import ConfigError, MissingPart, NeighbourUnavailable, WeirError

CONNECT_S = 10
WORKER_WAIT_S = 30.0
LOOK_S = 1.0
# What a figure's last bit depends on beside Weir's own code.
PACKAGES = ("numpy", "lightgbm", "scikit-learn", "pyarrow", "numba", "distributed")
# What Dask raises of a connection that is gone; RuntimeError once it has closed its pool.
_LOST = (OSError, RuntimeError)
_OWN_FILES = ("search.py", "evaluate.py", "cluster/link.py", "cluster/features.py", "cluster/trials.py")


class Cluster:
    """A scheduler that answers, with at least one worker, each of which runs the code of this process."""

    def __init__(self, client: Any, address: str) -> None:
        self.client, self.address = client, address
        self.held: dict[object, Any] = {}

    @property
    def thread_count(self) -> int:
        """How many tasks the workers run at once; at least 1.

        Raises:
            NeighbourUnavailable: the scheduler is gone.
        """
        try:
            threads: dict[str, int] = self.client.nthreads()
        except _LOST:
            raise self._gone() from None
        return max(sum(threads.values()), 1)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A future of `function(*arguments)`; a future among the arguments stands for its result."""
        return self.client.submit(checked, code_stamp(), function, *arguments, pure=False)

    def share(self, value: Any) -> Any:
        """A future of the value itself: sent once, and held where a task needs it."""
        return self.submit(same, value)

    def each(
        self, function: Callable[..., Any], shared: Sequence[Any], items: Iterable[Sequence[Any]]
    ) -> list[Any]:
        """[function(*shared, *item) for item in items], on the workers; `shared` is sent once.

        Raises:
            WeirError: as `function`. NeighbourUnavailable: as `first_done`.
        """
        held = [self.share(value) for value in shared]
        place = {self.submit(function, *held, *item): index for index, item in enumerate(items)}
        found: list[Any] = [None] * len(place)
        for future, result in self.results(place):
            found[place[future]] = result
        return found

    def results(self, futures: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each future with its result, as they come. Errors as `each`."""
        waiting = list(futures)
        while waiting:
            for future in self.first_done(waiting):
                waiting.remove(future)
                yield future, self.result(future)

    def first_done(self, futures: Iterable[Any]) -> list[Any]:
        """Those that are done, as soon as one is.

        Raises:
            NeighbourUnavailable: the scheduler, or the last worker, is gone.
        """
        waiting = list(futures)
        since = time.monotonic()
        while True:
            try:
                # Ends at once when one is done; the time only bounds how late a lost cluster is noticed.
                with self.client.as_current():
                    _distributed().wait(waiting, timeout=LOOK_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                since = self._since_workers(since)
            except _distributed().CancelledError:
                raise self._gone() from None
            done = [future for future in waiting if future.done()]
            if done:
                return done

    def result(self, future: Any) -> Any:
        """What a future that is done holds.

        Raises:
            WeirError: as its function. TrainingError: the function failed in a way that it does not know.
            NeighbourUnavailable: each worker that tried it died, or the scheduler is gone.
        """
        try:
            return future.result()
        except WeirError:
            raise
        except _distributed().KilledWorker:
            raise NeighbourUnavailable(
                f"{self.address}: a task was given up after each worker that ran it had died. See "
                "the workers' logs; with little memory, start them with a higher --memory-limit."
            ) from None
        except _distributed().CancelledError:
            raise self._gone() from None
        except Exception as error:  # noqa: BLE001 - whatever a worker raised is told in one line
            raise TrainingError(
                f"{self.address}: a worker failed, {type(error).__name__}: {_first_line(error)}. See its log."
            ) from None

    def ask_all(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What each worker answers, or the exception, by its address; without those just going away.

        Raises:
            NeighbourUnavailable: the scheduler is gone.
        """
        try:
            answers: dict[str, Any] = self.client.run(function, *arguments, on_error="return")
        except (*_LOST, _distributed().CancelledError):
            raise self._gone() from None
        return {where: answer for where, answer in answers.items() if not isinstance(answer, OSError)}

    def close(self) -> None:
        """Give the scheduler back what was asked of it, and leave."""
        self.held.clear()
        self.client.close(timeout=CONNECT_S)

    def _since_workers(self, since: float) -> float:
        """When a worker was last there: now, if one is."""
        if self.client.status != "running":
            raise self._gone()
        try:
            there = bool(self.client.nthreads())
        except _LOST:
            raise self._gone() from None
        if there:
            return time.monotonic()
        if time.monotonic() - since > WORKER_WAIT_S:
            raise NeighbourUnavailable(
                f"{self.address}: the last worker went away {WORKER_WAIT_S:g} s ago. Start workers with "
                f"`dask worker {self.address}`, and call it again."
            )
        return since

    def _gone(self) -> NeighbourUnavailable:
        return NeighbourUnavailable(
            f"{self.address}: the Dask scheduler went away. Start it, and call it again."
        )


_joined: dict[TrainingSettings, Cluster] = {}


def current() -> Cluster | None:
    """The cluster that was joined, or None: then everything is computed here."""
    return next(iter(_joined.values()), None)


def join(settings: TrainingSettings) -> Cluster | None:
    """The cluster of these settings, joined unless it is already; None, and none joined, without one.

    Raises:
        MissingPart: `distributed` is not installed. ConfigError: the files for TLS.
        NeighbourUnavailable: no scheduler, or no worker. TrainingError: other code on the cluster.
    """
    if settings in _joined:
        return _joined[settings]
    leave()
    if settings.dask_scheduler is None:
        return None
    cluster = Cluster(_client(settings, settings.dask_scheduler), settings.dask_scheduler)
    try:
        _require_workers(cluster)
        _require_code(cluster)
    except BaseException:  # also when interrupted: a client that is left open keeps threads and a connection
        cluster.close()
        raise
    _joined[settings] = cluster
    atexit.register(leave)
    return cluster


def leave() -> None:
    """Leave the cluster that was joined, if any."""
    while _joined:
        _joined.popitem()[1].close()


def checked(code: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """On a worker: the function's result, if the worker runs this code; one that came later may not.

    Raises:
        TrainingError: it runs another.
    """
    if (difference := _difference(code, code_stamp())) is not None:
        raise TrainingError(f"A worker has {difference}. Start it again from the same version of Weir.")
    return function(*arguments)


def same(value: Any) -> Any:
    """The value, as a task's result."""
    return value


@cache
def code_stamp() -> str:
    """Versions of Weir, its training code, Python and the packages that move a figure's last bit."""
    from services.training.train import code_version

    here = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in _OWN_FILES:
        digest.update((here / name).read_bytes())
    parts = [f"Weir {code_version()}.{digest.hexdigest()[:8]}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in PACKAGES)])


def _difference(ours: str, theirs: str) -> str | None:
    """The first thing in which another's code stamp differs, in words; None for the same."""
    for own, other in zip(ours.split(", "), theirs.split(", "), strict=True):
        if own != other:
            return f"{other}, this process {own}"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _require_workers(cluster: Cluster) -> None:
    try:
        cluster.client.wait_for_workers(1, timeout=WORKER_WAIT_S)
    except TimeoutError:
        raise NeighbourUnavailable(
            f"{cluster.address}: the Dask scheduler has no worker after {WORKER_WAIT_S:g} s. Start some with "
            f"`dask worker {cluster.address}`."
        ) from None


def _require_code(cluster: Cluster) -> None:
    """The scheduler unpickles what it passes on, so it needs the same code as the workers."""
    try:
        answers = {f"The scheduler {cluster.address}": cluster.client.run_on_scheduler(code_stamp)}
    except Exception as error:  # noqa: BLE001 - a scheduler without Weir may fail in any way
        answers = {f"The scheduler {cluster.address}": error}
    answers |= {f"The worker {where}": answer for where, answer in cluster.ask_all(code_stamp).items()}
    for who, answer in answers.items():
        if isinstance(answer, Exception):
            raise TrainingError(
                f"{who} does not run this Weir ({_first_line(answer)}). Start it in an environment "
                "of the same version, with the folder that holds `services` on its path."
            )
        if (difference := _difference(code_stamp(), answer)) is not None:
            raise TrainingError(f"{who} has {difference}. Start it again from the same version of Weir.")


def _client(settings: TrainingSettings, address: str) -> Any:
    distributed = _distributed()
    try:
        with warnings.catch_warnings():
            # Versions are compared here, in one line; Dask would print a table.
            warnings.simplefilter("ignore")
            return distributed.Client(
                address, timeout=CONNECT_S, set_as_default=False, security=_security(settings, address)
            )
    except (OSError, TimeoutError) as error:
        raise NeighbourUnavailable(
            f"{address}: no Dask scheduler answers there ({_first_line(error)}). Start it, "
            "or correct [training] dask_scheduler."
        ) from None


def _security(settings: TrainingSettings, address: str) -> Any:
    """Dask's security for mutual TLS; None without files."""
    files = (settings.dask_ca, settings.dask_certificate, settings.dask_key)
    encrypted = address.startswith("tls://")
    if not encrypted and not any(files):
        return None
    if not (encrypted and all(files)):
        raise ConfigError(
            "[training] dask_ca, dask_certificate and dask_key go together, with a dask_scheduler that "
            "begins with tls://. Give all three, or none and tcp://."
        )
    for file in files:
        if file is None or not file.is_file():
            raise ConfigError(
                f"{file}: no such file. Correct [training] dask_ca, dask_certificate or dask_key."
            )
    ca, certificate, key = map(str, files)
    return _distributed().Security(
        tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=key, require_encryption=True
    )


@cache
def _distributed() -> Any:
    """The package, silent: its errors are told by Weir.

    Raises:
        MissingPart: it is not installed.
    """
    try:
        module = importlib.import_module("distributed")
        dask = importlib.import_module("dask")
    except ImportError:
        raise MissingPart(
            "[training] dask_scheduler needs Dask, which is not installed. Run pip install 'weir[cluster]', "
            "or delete the setting."
        ) from None
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name == "distributed" or name.startswith("distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Rows travel within a task so that they can be sent again; Dask warns of anything above 10 MB.
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    return module

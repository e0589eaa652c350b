"""A canary on the live path: it decides for its accounts alone, and a guard takes it back by itself."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing

from tritonclient.grpc import InferenceServerClient

from infra.local import layout
from infra.local.ports import free_port
from infra.local.triton import TritonServer, stage
from services.risk.canary import rows_of
from services.risk.replay import Plan, replay
from services.risk.settings import RiskSettings
from services.training.guard.run import answers
from services.training.stages import StageLog
from tests.faults.checker import Place, check
from tests.support.payments import decisions, sample, until
from tests.support.risk import risk_under_test
from tests.support.servers import running_server
from tests.support.stages import repository_of, signers, step
from tests.support.under_load import UnderLoad
from weir.config import RegistrySettings, TritonSettings
from weir.crypto.keyring import Keyring
from weir.inference.stages import Stage
from weir.state.hashing import keyed_hash_list
from weir.streams.neighbours import Connections

SHARE = 0.3
DECIDED = 'weir_canary_rows_total{result="decided"}'
FELL_BACK = 'weir_canary_rows_total{result="fell_back"}'
FOR_EVER_MS = 2**42


async def test_a_canary_decides_for_its_accounts_until_a_guard_takes_it_back(tmp_path, kafka, keys):
    home = repository_of(tmp_path / "models", "1", "2")
    people, log = signers(home, tmp_path), StageLog(home, "risk")
    for version in "12":
        log.register(version, people["anna"])
    step(log, people, "1", Stage.CHAMPION)
    step(log, people, "2", Stage.SHADOW)
    sha256 = log.read().sha256["2"]
    server = TritonServer(
        home.root, tmp_path / "triton.log", staged=tmp_path / "staged", model_control="explicit"
    )
    with (
        running_server(server),
        closing(
            InferenceServerClient(server.endpoint, channel_args=[("grpc.enable_http_proxy", 0)])
        ) as control,
        risk_under_test(tmp_path / "risk", kafka, keys, server.endpoint, home.root) as risk,
    ):
        await asyncio.to_thread(control.load_model, "risk")
        await asyncio.to_thread(risk.start)
        async with UnderLoad(risk, "canary", seed=7) as load:
            async with load.change():
                step(log, people, "2", Stage.CANARY, SHARE)
                await until(lambda: sample(risk.metrics(), DECIDED) > 500, "the canary has decided")
            assert risk.health()["canary_version"] == "2"
            guard = guarding(risk, server.endpoint, home.root, tmp_path)
            try:
                await until(lambda: b"guard_started" in output_of(tmp_path), "the guard looks")
                # Somebody takes the canary's version away from Triton.
                home.serve("risk", ["1"])
                stage(home.root, target=server.staged)
                await asyncio.to_thread(control.load_model, "risk")
                await until(
                    lambda: log.read().stages["2"] is Stage.SHADOW, "the guard has taken the canary back"
                )
            finally:
                guard.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(guard.wait, 30)
            assert code == 0, output_of(tmp_path)
            # What it would ask before it put a champion back.
            triton = TritonSettings(endpoint=server.endpoint)
            assert [await answers(log, triton, version) for version in "12"] == [True, False]
            await until(lambda: risk.health()["canary_version"] is None, "the worker follows")
            await load.more()
            assert sample(risk.metrics(), FELL_BACK) > 0
        history = await load.history(risk)
        found = await decisions(risk)
        entry = log.read().history[-1]
        assert (entry["act"], entry["by"]) == ("undo", "guard")
        assert "decided by the champion in its place" in entry["why"]
        version = {
            Place(each.feature_ref.partition, each.feature_ref.offset): each.model_version for each in found
        }
        history.expected_logits = {
            place: logit - 0.125 * int(version.get(place, 1))
            for place, logit in history.expected_logits.items()
        }
        # Nothing lost, doubled or out of order, and each score is that of the version which it names.
        assert check(history) == []
        assert not any(each.degraded for each in found)
        async with await Keyring.connect(keys.settings("risk-worker")) as keyring:
            hash_key = (await keyring.pseudonymizer("default")).hash_key
        accounts = sorted({each.account_id for each in found})
        hashed = keyed_hash_list([account.encode() for account in accounts], hash_key)
        theirs = {accounts[row] for row in rows_of(hashed, sha256, SHARE)}
        assert theirs
        assert {each.account_id for each in found if each.model_version == "2"} <= theirs
        home.serve("risk", ["1", "2"])
        stage(home.root, target=server.staged)
        await asyncio.to_thread(control.load_model, "risk")
        settings = RiskSettings(model_repository=home.root, data_dir=risk.directory / "data")
        to = Connections(
            risk.kafka_settings,
            risk.topics,
            TritonSettings(endpoint=server.endpoint),
            keys.settings("replay"),
            RegistrySettings(),
        )
        report = await replay(Plan(from_ms=0, to_ms=FOR_EVER_MS), settings, to)
        assert report.same_as_then, "\n".join(report.as_text())
        assert report.compared == len(found)
        assert sorted(report.models.values()) == ["risk 1", "risk 2"]


def output_of(folder) -> bytes:
    path = folder / "guard.log"
    return path.read_bytes() if path.exists() else b""


def guarding(risk, triton: str, repository, folder) -> subprocess.Popen[bytes]:
    """`weir models guard`, as a bank would run it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")} | {
        "WEIR_GUARD_INTERVAL_S": "0.3",
        "WEIR_GUARD_CALLS_MIN": "10",
        "WEIR_GUARD_METRICS_PORT": str(free_port()),
        "WEIR_TRITON_ENDPOINT": triton,
    }
    words = ["models", "guard", "--by", "guard", "--key", str(folder / "guard.pem")]
    words += ["--worker", f"http://127.0.0.1:{risk.metrics_port}/metrics", "--repository", str(repository)]
    with (folder / "guard.log").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "weir", *words], env=environment, stdout=out, stderr=out, cwd=layout.ROOT
        )

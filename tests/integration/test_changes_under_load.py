"""Keys, model, policy and schema change while a bank pays: nothing is lost, doubled, out of order or mixed.

Each test prints how long a reader of committed decisions waited at most during the change, and before it.
"""

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient.grpc import InferenceServerClient

from infra.local import layout
from infra.local.pki import ROLES, ensure_pki
from infra.local.triton import TritonServer, stage
from services.risk.settings import HERE
from tests.faults.bank import POISON_KEY
from tests.faults.checker import Place, check
from tests.support.keys import running_keys_service
from tests.support.payments import dead_letters, decisions, raw_records, sample, until
from tests.support.risk import risk_under_test
from tests.support.schema_registry import PASSWORD, USER, RegistryUnderTest
from tests.support.servers import running_server
from tests.support.under_load import UnderLoad, in_order, mixtures, runs
from weir.codec.avro import RowCodec
from weir.codec.compatibility import check_compatibility
from weir.codec.framing import frame, unframe
from weir.codec.registry import HttpRegistry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.crypto.client import KeyServiceClient
from weir.crypto.envelope import sealing_key_id
from weir.crypto.secret import Compartment

# How long a worker may keep a key; it takes the next one at half of it.
CACHE_S = 2
LOGIT_SHIFT = 1.5
KEYS_DEADLINE_S = 10.0


# --- keys ---


def weir_keys(service, *arguments):
    """`weir keys ...`, as the key service's user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "weir", "keys", *arguments],
        env={**os.environ, "WEIR_CONFIG": str(service.config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture
async def short(tmp_path):
    """A key service whose keys may be kept for two seconds, and its administrator."""
    with running_keys_service(tmp_path / "keys", cache_seconds=CACHE_S) as service:
        admin = KeyServiceClient(service.settings("admin"))
        yield service, admin
        await admin.close()


async def test_keys_rotate_and_every_decision_before_and_after_opens(tmp_path, kafka, triton, short):
    """Both data keys twice, and between them the key that wraps them; poison comes in all the time."""
    service, admin = short
    with risk_under_test(tmp_path / "risk", kafka, service, triton.endpoint) as risk:
        await asyncio.to_thread(risk.start)
        topics = (risk.topics.decisions, risk.topics.risk_dlq)
        async with UnderLoad(risk, "key rotation", seed=1) as load:
            load.bank.poison(20)
            for epoch in (2, 3):
                async with load.change():
                    for topic in topics:
                        rotated = await admin.rotate(Compartment(topic, "C3"), KEYS_DEADLINE_S)
                        assert rotated.epoch == epoch
                        name = f"{rotated.key_id:08x}"
                        await until(lambda name=name: name in risk.log_text(), "the worker seals with it")
                    load.bank.poison(20)
                if epoch == 2:
                    await asyncio.to_thread(weir_keys, service, "new-kek")
                    assert "all are under kek-000002" in await asyncio.to_thread(weir_keys, service, "rewrap")
        assert check(await load.history(risk)) == []
        assert len(await dead_letters(risk)) == 60
        for topic in topics:
            lying = await raw_records(kafka.bootstrap_servers, topic)
            assert len({sealing_key_id(each.value) for each in lying}) == 3


# --- model ---


def another_version(risk_model: Path) -> tuple[str, str]:
    """Version 2 beside version 1, of which every logit is a little higher; both SHA-256, in this order."""
    first, second = risk_model / "1", risk_model / "2"
    shutil.copytree(first, second)
    model = onnx.load(second / "model.onnx")
    (base,) = (each for each in model.graph.initializer if each.name == "base_logit")
    shifted = numpy_helper.to_array(base) + np.float32(LOGIT_SHIFT)
    base.CopyFrom(numpy_helper.from_array(shifted, "base_logit"))
    onnx.save(model, second / "model.onnx")
    card = json.loads((second / "model.json").read_text())
    before = card["sha256"]
    card |= {
        "version": "2",
        "sha256": hashlib.sha256((second / "model.onnx").read_bytes()).hexdigest(),
        "base_logit": float(shifted[0]),
    }
    (second / "model.json").write_text(json.dumps(card))
    return before, card["sha256"]


async def test_a_new_model_is_taken_by_restarting_workers_one_by_one_and_no_batch_is_of_both(
    tmp_path, kafka, keys
):
    """Triton serves the version before as well; two workers, so that one decides while the other restarts."""
    repository = tmp_path / "models"
    shutil.copytree(layout.MODEL_SOURCES / "risk", repository / "risk")
    server = TritonServer(
        repository, tmp_path / "triton.log", staged=tmp_path / "staged", model_control="explicit"
    )
    with (
        running_server(server),
        closing(
            InferenceServerClient(server.endpoint, channel_args=[("grpc.enable_http_proxy", 0)])
        ) as control,
        risk_under_test(tmp_path / "one", kafka, keys, server.endpoint, repository) as one,
        risk_under_test(tmp_path / "two", kafka, keys, server.endpoint, repository) as two,
    ):
        await asyncio.to_thread(control.load_model, "risk")
        two.topics = one.topics
        workers = (one, two)
        await asyncio.gather(*(asyncio.to_thread(each.start) for each in workers))
        async with UnderLoad(one, "model swap", seed=2) as load, load.change():
            sha256_of = dict(zip("12", another_version(repository / "risk"), strict=True))
            stage(repository, target=server.staged)
            await asyncio.to_thread(control.load_model, "risk")
            assert control.is_model_ready("risk", "1")
            assert control.is_model_ready("risk", "2")
            for worker in workers:
                assert await asyncio.to_thread(worker.stop) == 0
                await asyncio.to_thread(worker.start)
        history = await load.history(*workers)
        found = await decisions(one)
        version = {
            Place(each.feature_ref.partition, each.feature_ref.offset): each.model_version for each in found
        }
        history.expected_logits = {
            place: logit + LOGIT_SHIFT * (version.get(place) == "2")
            for place, logit in history.expected_logits.items()
        }
        # Among it: each score is that of the version which its decision names.
        assert check(history) == []
        assert not any(each.degraded for each in found)
        assert {(each.model_version, each.model_sha256) for each in found} == set(sha256_of.items())
        for of_partition in in_order(found).values():
            assert runs([each.model_version for each in of_partition]) == ["1", "2"]
        assert await mixtures(one, found) == []


# --- policy ---


async def test_a_policy_is_taken_between_two_batches_and_a_bad_one_is_not(tmp_path, kafka, keys, triton):
    """Broken, then one that declines everything, then the first again: put in place as an editor does it."""
    path = tmp_path / "policy.toml"
    text = (HERE / "policy.toml").read_text()
    path.write_text(text)

    def put(changed):
        fresh = path.with_suffix(".new")
        fresh.write_text(changed)
        fresh.replace(path)

    with risk_under_test(tmp_path / "risk", kafka, keys, triton.endpoint, policy=str(path)) as risk:
        await asyncio.to_thread(risk.start)
        first = risk.health()["policy"]
        strict = text.replace(f'"{first}"', '"nothing-passes"').replace("_at = 0.", "_at = 0.0  # 0.")

        async def reloaded(result, count):
            name = f'weir_policy_reloads_total{{result="{result}"}}'
            await until(lambda: sample(risk.metrics(), name) == count, f"{count} policies {result}")

        async with UnderLoad(risk, "policy reload", seed=3) as load:
            async with load.change():
                put(text + "\n[thresholds\n")
                await reloaded("refused", 1)
            assert risk.health()["policy"] == first
            for count, changed in enumerate((strict, text), 1):
                async with load.change():
                    put(changed)
                    await reloaded("loaded", count)
        assert check(await load.history(risk)) == []
        found = await decisions(risk)
        sha256_of = {
            first: hashlib.sha256(text.encode()).hexdigest(),
            "nothing-passes": hashlib.sha256(strict.encode()).hexdigest(),
        }
        assert {(each.policy_version, each.policy_sha256) for each in found} == set(sha256_of.items())
        for of_partition in in_order(found).values():
            assert runs([each.policy_version for each in of_partition]) == [first, "nothing-passes", first]
        assert await mixtures(risk, found) == []
        # What a decision says is what it was decided by.
        outcomes = Counter((each.policy_version, str(each.outcome)) for each in found)
        assert {outcome for version, outcome in outcomes if version != first} == {"DECLINE"}
        assert outcomes[first, "APPROVE"] > 0


# --- schema ---


@pytest.fixture
def pki(tmp_path):
    return ensure_pki(tmp_path / "pki", ROLES)


@pytest.fixture
async def registry(pki):
    async with RegistryUnderTest(pki.keys_server.certificate, pki.keys_server.key) as server:
        yield server


async def test_payments_of_a_new_schema_come_amid_the_old_ones_and_all_are_decided(
    tmp_path, kafka, triton, pki, registry
):
    """Two fields more, registered while the worker runs; from then on each payment is of either version."""
    today = load_schema("transaction")
    money = {"type": "bytes", "logicalType": "decimal", "precision": 19, "scale": 4}
    device = {"name": "device_id", "type": ["null", "string"], "default": None}
    fee = {"name": "fee", "type": ["null", money], "default": None}
    newer = {**today, "fields": [*today["fields"][:2], device, *today["fields"][2:], fee]}
    assert check_compatibility(newer, [today]) == []
    table = {"url": registry.url, "username": USER, "password": PASSWORD, "ssl_ca": pki.ca}
    with (
        running_keys_service(tmp_path / "keys", pki=pki) as service,
        risk_under_test(
            tmp_path / "risk", kafka, service, triton.endpoint, tables={"registry": table}
        ) as risk,
    ):
        operator = HttpRegistry(risk.registry)
        for name, subject in SUBJECTS.items():
            await operator.register(subject, load_schema(name))
        first = registry.id_of(SUBJECTS["transaction"])
        codecs = {first: RowCodec(today)}
        draw = random.Random(4)

        async def encode(payments):
            values = []
            for each in payments:
                schema_id = draw.choice(list(codecs))
                extra = {"device_id": "a device", "fee": Decimal("0.2500")} if schema_id != first else {}
                values.append(frame(schema_id, codecs[schema_id].encode({**each, **extra})))
            return values

        def payment_of(value):
            schema_id, payload = unframe(value)
            return codecs[schema_id].decode(payload)

        await asyncio.to_thread(risk.start)
        async with UnderLoad(risk, "schema evolution", seed=4, encode=encode) as load, load.change():
            second = await operator.register(SUBJECTS["transaction"], newer)
            codecs[second] = RowCodec(newer)
        await operator.close()
        assert check(await load.history(risk, payment_of=payment_of)) == []
        assert await dead_letters(risk) == []
        lying = await raw_records(kafka.bootstrap_servers, risk.topics.transactions)
        written_as = Counter(unframe(each.value)[0] for each in lying if each.key != POISON_KEY)
        assert set(written_as) == {first, second}
        assert len(await decisions(risk)) == written_as.total()
        # One after the other in the same batches, not one side after the other.
        after = [unframe(each.value)[0] for each in sorted(lying, key=lambda r: (r.partition, r.offset))]
        assert len(runs([str(each) for each in after])) > 100

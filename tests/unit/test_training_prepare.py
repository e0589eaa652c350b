"""Events before a model sees them: a broken rule is counted, cleaned and told; the future is refused."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.simulator.bank import Bank
from services.simulator.parquet import write_history
from services.simulator.settings import SimulatorSettings
from services.training.data import read_events
from services.training.errors import DataMissing, TrainingError
from services.training.prepare.clean import clean
from services.training.prepare.cli import app
from services.training.prepare.contract import LABEL_RULES, PAYMENT_RULES, Severity, validate
from services.training.prepare.lake import COLUMNS, Lake
from services.training.prepare.leaks import FeatureLeaks, find_leaks, suspicious
from services.training.prepare.profile import profile
from services.training.prepare.report import page
from weir.errors import BadInput
from weir.features.offline import features_of
from weir.features.payments import FEATURES

START = datetime(2026, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
NOW_MS = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)


def payment(number: int, **changed: object) -> dict[str, object]:
    return {
        "event_id": f"e-{number}",
        "account_id": f"a-{number % 7}",
        "terminal_id": f"t-{number % 5}",
        "amount": Decimal(number % 90 + 1),
        "currency": "EUR",
        "event_time": START + timedelta(hours=number),
        "channel": ("POS", "ECOM")[number % 2],
        "country": "DE",
    } | changed


def label(number: int, **changed: object) -> dict[str, object]:
    paid = payment(number)
    return (
        {name: paid[name] for name in ("event_id", "account_id", "terminal_id", "event_time")}
        | {"reported_time": START + timedelta(hours=number, days=7), "is_fraud": True, "source": "ANALYST"}
        | changed
    )


def write(folder: Path, payments: list[dict[str, object]], labels: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    more = {"country": pa.string()}, {"source": pa.string()}
    for (kind, columns), rows, other in zip(COLUMNS.items(), (payments, labels), more, strict=True):
        schema = pa.schema({**columns, **other})
        half = len(rows) // 2
        for month, part in (("2026-01", rows[:half]), ("2026-02", rows[half:])):
            pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"{kind}-{month}.parquet")
    return folder


def good(count: int = 24 * 40) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    return [payment(number) for number in range(count)], [label(number) for number in range(0, count, 9)]


def found(folder: Path, **options: int) -> dict[tuple[str, str], int]:
    with Lake.of(folder, memory_mb=256) as lake:
        findings = validate(lake, now_ms=NOW_MS, **{"days_min": 35, **options})
    return {(finding.table, finding.rule): finding.count for finding in findings}


def test_events_that_keep_the_contract_have_no_finding(tmp_path):
    assert found(write(tmp_path / "in", *good())) == {}


BROKEN = {
    ("transactions", "no_event_id"): {"event_id": ""},
    ("transactions", "no_entity"): {"terminal_id": None},
    ("transactions", "bad_time"): {"event_time": datetime(2027, 1, 1, tzinfo=UTC)},
    ("transactions", "bad_amount"): {"amount": Decimal(-3)},
    ("transactions", "bad_channel"): {"channel": "PIGEON"},
    ("transactions", "bad_currency"): {"currency": "euro"},
    ("transactions", "duplicate"): {"event_id": "e-5"},
    ("labels", "no_event_id"): {"event_id": None},
    ("labels", "no_payment"): {"event_id": "e-unknown"},
    ("labels", "no_verdict"): {"is_fraud": None},
    ("labels", "other_payment"): {"account_id": "a-other"},
    ("labels", "before_payment"): {"reported_time": START - timedelta(days=1)},
    ("labels", "from_the_future"): {"reported_time": datetime(2027, 1, 1, tzinfo=UTC)},
    ("labels", "duplicate"): {"event_id": "e-9"},
}


def test_every_rule_of_a_row_is_tried():
    assert set(BROKEN) == {(rule.table, rule.name) for rule in (*PAYMENT_RULES, *LABEL_RULES)}


@pytest.mark.parametrize(("table", "rule"), list(BROKEN))
def test_a_row_that_breaks_a_rule_is_counted_once_and_cleaned(tmp_path, table, rule):
    payments, labels = good()
    rows = payments if table == "transactions" else labels
    rows.append((payment(900) if table == "transactions" else label(891)) | BROKEN[table, rule])
    if rule == "duplicate":
        rows[-1] = dict(rows[0]) | ({"event_time": rows[3]["event_time"]} if table == "transactions" else {})
    elif table == "transactions":
        rows[-1].setdefault("event_id", "")
        rows[-1]["event_id"] = rows[-1]["event_id"] if rule == "no_event_id" else "e-new"
    else:
        labels[:] = [each for each in labels if each["event_id"] != "e-891" or each is rows[-1]]
    folder = write(tmp_path / "in", payments, labels)
    assert {key: count for key, count in found(folder).items() if key[0] != "all"} == {(table, rule): 1}
    with Lake.of(folder, memory_mb=256) as lake:
        done = clean(lake, tmp_path / "out", now_ms=NOW_MS)
    assert done.taken_out[table] == {rule: 1}
    assert found(tmp_path / "out") == {}
    bad = pq.read_table(tmp_path / "out" / f"quarantine-{table}.parquet").to_pylist()
    assert [(row["reason"], row["file"]) for row in bad] == [(rule, f"{table}-2026-02.parquet")]
    # The cleaned events are those that a training reads.
    assert read_events(tmp_path / "out").payments.row_count == len(payments) - (table == "transactions")


def test_cleaned_files_are_sorted_and_the_same_each_time(tmp_path):
    payments, labels = good()
    np.random.default_rng(3).shuffle(payments)
    folder = write(tmp_path / "in", payments, labels)
    assert found(folder)["all", "out_of_order"] > 100
    for name in ("one", "two"):
        with Lake.of(folder, memory_mb=256) as lake:
            assert clean(lake, tmp_path / name, now_ms=NOW_MS).kept["transactions"] == len(payments)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert found(tmp_path / "one") == {}
    table = pq.read_table(tmp_path / "one" / "transactions-2026-01.parquet")
    assert table.schema.field("amount").type == COLUMNS["transactions"]["amount"]
    assert "country" in table.schema.names


def all_of(rows: list[dict[str, object]], **changed: object) -> list[dict[str, object]]:
    return [row | changed for row in rows]


SETS = {
    "no_fraud": (Severity.STOP, lambda paid, told: (paid, all_of(told, is_fraud=False))),
    "one_class": (Severity.STOP, lambda paid, told: (paid[:20], [label(number) for number in range(20)])),
    "few_days": (Severity.STOP, lambda paid, told: (paid[:240], told[:20])),
    "verdicts_differ": (
        Severity.WARNING,
        lambda paid, told: (paid, [*told, *all_of(told[:1], is_fraud=False)]),
    ),
    "constant_channel": (Severity.WARNING, lambda paid, told: (all_of(paid, channel="POS"), told)),
    "constant_amount": (Severity.WARNING, lambda paid, told: (all_of(paid, amount=Decimal(5)), told)),
}


@pytest.mark.parametrize("rule", SETS)
def test_a_set_that_makes_no_model_is_told(tmp_path, rule):
    severity, change = SETS[rule]
    folder = write(tmp_path / "in", *change(*good()))
    with Lake.of(folder, memory_mb=256) as lake:
        findings = validate(lake, now_ms=NOW_MS, days_min=35)
    assert severity in {finding.severity for finding in findings if finding.rule == rule}


def test_files_that_are_none_or_of_another_kind_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataMissing), Lake.of(tmp_path / "nowhere", memory_mb=256):
        pass
    folder = write(tmp_path / "in", *good())
    path = folder / "transactions-2026-02.parquet"
    whole, table = path.read_bytes(), pq.read_table(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(BadInput, match="not_parquet") as torn, Lake.of(folder, memory_mb=256):
        pass
    assert "\n" not in str(torn.value)
    as_text = table.column("amount").cast(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("amount"), "amount", as_text), path)
    with pytest.raises(BadInput, match="amount is string"), Lake.of(folder, memory_mb=256):
        pass
    pq.write_table(table.drop_columns(["channel"]), path)
    with pytest.raises(BadInput, match="no column channel"), Lake.of(folder, memory_mb=256):
        pass


def test_a_folder_that_exists_is_not_written_over_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("full")

    folder = write(tmp_path / "in", *good())
    with Lake.of(folder, memory_mb=256) as lake:
        with pytest.raises(TrainingError, match="exists"):
            clean(lake, folder, now_ms=NOW_MS)
        monkeypatch.setattr(
            pq.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(OSError("full"))
        )
        with pytest.raises(OSError, match="full"):
            clean(lake, tmp_path / "out", now_ms=NOW_MS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_profile_counts_and_shows_no_customers_value(tmp_path):
    payments, labels = good()
    with Lake.of(write(tmp_path / "in", payments, labels), memory_mb=256) as lake:
        findings = validate(lake, now_ms=NOW_MS, days_min=365)
        made = profile(lake, NOW_MS)
    assert (made.whole["payments"], made.whole["frauds"]) == (len(payments), len(labels))
    assert sum(count for _, count, _ in made.series["day"]) == len(payments)
    assert sum(frauds for _, _, frauds in made.series["hour"]) == len(labels)
    assert dict(made.delays) == {7: len(labels)}
    for language, word in (("en", "known frauds"), ("zh", "已知欺诈")):
        text = page(made, findings, language=language, fingerprint="sha256:<x>")
        assert word in text
        assert "few_days" in text
        assert "sha256:&lt;x&gt;" in text
        for value in ("e-17", "a-3", "t-2"):
            assert f">{value}<" not in text


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    settings = SimulatorSettings.model_validate({"accounts": 120, "terminals": 20, "seed": 5})
    write_history(Bank(settings), folder, 45)
    return folder


def test_the_served_features_do_not_know_the_future(bank):
    leaks = find_leaks(read_events(bank), features_of, FEATURES)
    leaks.require_none()
    assert len(leaks.cuts_ms) == 3


def test_a_feature_that_knows_the_future_is_refused_by_name(bank):
    events = read_events(bank)

    def leaking(payments, labels):
        x = features_of(payments, labels)
        later = np.zeros((len(x), 2), np.float32)
        # How often the account pays in all, and whether this payment was ever reported.
        _, place, counts = np.unique(payments.account, return_inverse=True, return_counts=True)
        later[:, 0] = counts[place]
        later[:, 1] = np.isin(payments.event_ms, labels.event_ms)
        return np.hstack([x, later])

    names = (*FEATURES, "payments_in_all", "ever_reported")
    leaks = find_leaks(events, leaking, names)
    assert set(leaks.leaking) == {"payments_in_all", "ever_reported"}
    whole = leaking(events.payments, events.labels)
    assert "ever_reported" in suspicious(whole, events.is_fraud, names)
    with pytest.raises(FeatureLeaks, match="ever_reported, payments_in_all"):
        leaks.require_none()


def test_the_commands_say_what_they_found(tmp_path, bank):
    payments, labels = good()
    folder = write(tmp_path / "in", [*payments, payment(3)], labels)
    run = CliRunner().invoke
    told = run(app, ["validate", str(folder), "--json"])
    assert told.exit_code != 0
    assert json.loads(told.stdout)["findings"][0]["rule"] == "duplicate"
    assert "row" in run(app, ["validate", str(folder)]).stdout
    assert run(app, ["clean", str(folder), "--out", str(tmp_path / "out")]).exit_code == 0
    assert "keeps the contract" in run(app, ["validate", str(tmp_path / "out")]).stdout
    html = tmp_path / "p.html"
    assert run(app, ["profile", str(folder), "--out", str(html), "--language", "zh"]).exit_code == 0
    assert "<svg" in html.read_text()
    assert f"None of {len(FEATURES)} features" in run(app, ["leaks", str(bank)]).stdout
    split = json.loads(run(app, ["split", str(bank), "--json"]).stdout)
    assert [row["window"] for row in split["windows"]] == ["train", "validation", "test"]

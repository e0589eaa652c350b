"""The ceiling knows what was told and nothing else, and says what data it needs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import ceiling
from weir.errors import MissingPart
from weir.features.payments import FEATURES


def test_kinds_come_in_the_order_of_time_whatever_the_order_of_files(tmp_path):
    for name, days, kinds in (("a", (3, 1), (3, 1)), ("b", (2, 4), (2, 0))):
        times = np.array([f"2018-08-0{day}" for day in days], "datetime64[ms]")
        columns = {"TX_DATETIME": times, "TX_FRAUD_SCENARIO": np.array(kinds, np.int8)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    assert ceiling.scenarios(tmp_path).tolist() == [1, 2, 3, 0]


def test_a_terminal_is_told_of_by_early_reports_and_by_those_after_the_delay():
    x = np.zeros((4, len(FEATURES)), np.float32)
    x[1, FEATURES.index("terminal_risk_30d")] = 0.1
    x[2, FEATURES.index("terminal_fraud_early")] = 1
    x[3, FEATURES.index("account_fraud_count_30d")] = 1
    assert ceiling.told(x).tolist() == [False, True, True, False]


def test_data_without_kinds_is_named_in_one_line(tmp_path):
    pq.write_table(pa.table({"event_id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(MissingPart, match="no Parquet there has TX_FRAUD_SCENARIO") as caught:
        ceiling.scenarios(tmp_path)
    assert "\n" not in str(caught.value)

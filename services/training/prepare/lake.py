"""A folder of events as tables that are queried without being held: DuckDB over Parquet.

What does not fit into the memory that is allowed goes to the disk, so a folder may be larger than memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from services.training.errors import DataMissing
from weir.errors import BadInput

_TIME = pa.timestamp("ms", tz="UTC")
# As `weir simulate --to-parquet` writes them; what else a file has is carried along.
COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    "transactions": {
        "event_id": pa.string(),
        "account_id": pa.string(),
        "terminal_id": pa.string(),
        "amount": pa.decimal128(19, 4),
        "currency": pa.string(),
        "event_time": _TIME,
        "channel": pa.string(),
    },
    "labels": {
        "event_id": pa.string(),
        "account_id": pa.string(),
        "terminal_id": pa.string(),
        "event_time": _TIME,
        "reported_time": _TIME,
        "is_fraud": pa.bool_(),
    },
}


class Lake:
    """The events of one folder; `of` opens one."""

    def __init__(self, folder: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.folder, self._connection = folder, connection

    @classmethod
    @contextmanager
    def of(cls, folder: Path, *, memory_mb: int) -> Iterator["Lake"]:
        """Open the folder's `transactions-*.parquet` and `labels-*.parquet` as tables of these names.

        Each has beside its columns `file` and `row`, from 0, where it lies.

        Args:
            memory_mb: what may be held; the rest goes to a folder beside the events.
        Raises:
            DataMissing: no such folder or files. BadInput: `missing_column`, `bad_type`, `not_parquet`.
        """
        for kind in COLUMNS:
            _require(folder, kind)
        connection = duckdb.connect()
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET memory_limit = '{memory_mb}MB'")
            connection.execute(f"SET temp_directory = '{_quoted(folder / '.spill')}'")
            for kind in COLUMNS:
                files = _quoted(folder / f"{kind}-*.parquet")
                connection.execute(
                    f"CREATE VIEW {kind} AS SELECT * EXCLUDE (filename, file_row_number), "
                    f"parse_filename(filename) AS file, file_row_number AS row "
                    f"FROM read_parquet('{files}', filename = true, file_row_number = true, "
                    "union_by_name = true)"
                )
            yield cls(folder, connection)
        except duckdb.OutOfMemoryException as error:
            raise BadInput(
                "too_large", f"{folder}: {memory_mb} MB do not do for this. Allow more with --memory"
            ) from error
        except duckdb.Error as error:
            # Its first line; the rest quotes the query.
            raise BadInput("not_readable", f"{folder}: {str(error).splitlines()[0][:200]}") from error
        finally:
            connection.close()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The result of a query that is small."""
        found = self._connection.execute(query)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def define(self, name: str, query: str) -> None:
        """A view for other queries."""
        self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def columns(self, kind: str) -> list[str]:
        """The columns of a table, without `file` and `row`."""
        found = self._connection.execute(f"DESCRIBE {kind}").fetchall()
        return [str(row[0]) for row in found if row[0] not in ("file", "row")]

    def batches(self, query: str, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The result of a query of any size."""
        reader: Any = self._connection.sql(query).to_arrow_reader(rows)
        yield from reader


def _require(folder: Path, kind: str) -> None:
    if not folder.is_dir():
        raise DataMissing(f"{folder} is not a folder. Make one with `weir simulate --to-parquet {folder}`.")
    files = sorted(folder.glob(f"{kind}-*.parquet"))
    if not files:
        raise DataMissing(
            f"{folder} has no {kind}-*.parquet. `weir simulate --to-parquet DIR` shows the layout."
        )
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput("not_parquet", f"{file}: {str(error).splitlines()[0][:200]}") from error
        for name, wanted in COLUMNS[kind].items():
            if name not in schema.names:
                raise BadInput("missing_column", f"{file} has no column {name}")
            if not _is_like(schema.field(name).type, wanted):
                raise BadInput("bad_type", f"{file}: {name} is {schema.field(name).type}, not {wanted}")


def _is_like(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether it can be read as that without a guess: text where numbers belong can't."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(found))
    if pa.types.is_decimal(wanted):
        return bool(pa.types.is_decimal(found) or pa.types.is_integer(found))
    return bool(found == wanted)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def joined(conditions: Sequence[tuple[str, str]]) -> str:
    """A CASE that names the first condition that holds, and is NULL where none does."""
    return "CASE " + " ".join(f"WHEN {sql} THEN '{name}'" for name, sql in conditions) + " END"

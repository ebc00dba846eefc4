"""The door of pyarrow: Parquet files as the contract has them (§5), for pandas, Polars, DuckDB, Dask and Spark.

Rule 1: a file appears whole under its name, or not at all; while it is written its name begins with a point, which every
reader passes over. Rule 2: memory does not grow with the file: rows go out group by group.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Bools, Floats, Ints

HOW_TO_GET = (
    "Parquet needs the extra `lake`: pip install 'edge-agent[lake]'  (pyarrow); CSV needs nothing: --format csv"
)
CELLS_A_GROUP = 1_000_000
"""Values of a row group: about 10 MB of memory while it waits."""
COMPRESSION = "zstd"
TS, STATE, QUALITY = "ts", "operating_state", "__q"


class NoLake(Exception):
    """pyarrow is not installed, or a file cannot be written; in words."""


def is_here() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def columns_of(signals: Sequence[str]) -> list[tuple[str, str]]:
    """(value, quality) column of each signal: its name, and its name with `__q`. A name that is taken gets a `_` behind it."""
    taken = {TS, STATE, *signals, *(f"{name}{QUALITY}" for name in signals)}
    found = []
    for name in signals:
        value, quality = name, f"{name}{QUALITY}"
        while value in (TS, STATE):
            value = _free(f"{value}_", taken)
        while quality in signals:
            quality = _free(f"{quality}_", taken)
        found.append((value, quality))
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


class PartWriter:
    """One file of one machine's rows."""

    def __init__(self, pa: Any, writer: Any, schema: Any, signals: int) -> None:
        self._pa, self._writer, self._schema, self._signals = pa, writer, schema, signals
        self._waiting: list[Any] = []
        self._cells = 0
        self.rows = 0

    def add(
        self, ts: Ints, values: Floats, absent: Bools, quality: npt.NDArray[np.int8], states: Sequence[str | None]
    ) -> None:
        """ts: (rows,) UTC µs. values, absent, quality: (rows, signals); absent ones become null. states: (rows,)."""
        pa = self._pa
        arrays = [pa.array(ts, pa.timestamp("us", tz="UTC"))]
        for column in range(self._signals):
            arrays.append(pa.array(np.ascontiguousarray(values[:, column]), pa.float64(), mask=absent[:, column]))
            arrays.append(pa.array(np.ascontiguousarray(quality[:, column]), pa.int8()))
        arrays.append(pa.array(states, pa.string()))
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._cells += len(ts) * (self._signals + 1)
        self.rows += len(ts)
        if self._cells >= CELLS_A_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            whole = self._pa.concat_tables(self._waiting)
            self._writer.write_table(whole, row_group_size=max(1, len(whole)))
            self._waiting, self._cells = [], 0


@contextmanager
def part(path: Path, signals: Sequence[str], about: Mapping[str, Any]) -> Iterator[PartWriter]:
    """A file at this path, which the caller renames when it is whole. about: kept in the file's metadata.

    Raises NoLake when pyarrow is missing, OSError as it comes.
    """
    pa, parquet = _pyarrow()
    fields = [pa.field(TS, pa.timestamp("us", tz="UTC"), nullable=False)]
    for value, quality in columns_of(signals):
        fields += [pa.field(value, pa.float64()), pa.field(quality, pa.int8(), nullable=False)]
    fields.append(pa.field(STATE, pa.string()))
    schema = pa.schema(fields, metadata={"edge-agent": json.dumps(dict(about), sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, schema, compression=COMPRESSION, version="2.6") as writer:
        its = PartWriter(pa, writer, schema, len(signals))
        yield its
        its.flush()


WARNING_COLUMNS: tuple[tuple[str, str], ...] = (
    ("epoch", "string"), ("seq", "int64"), ("ts", "time"), ("id", "string"), ("event", "string"), ("machine", "string"),
    ("signal", "string"), ("kind", "string"), ("severity", "string"), ("state", "string"), ("value", "float64"),
    ("unit", "string"), ("limit", "float64"), ("since", "time"), ("operating_state", "string"), ("count", "int64"),
    ("by", "string"), ("comment", "string"), ("message", "string"), ("advice", "string"), ("norm", "string"),
)  # fmt: skip
"""Of a warning event: the fields of its message (contract §2); norm as JSON text, times in µs."""


def write_warnings(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A file of warning events; rows: by column, see WARNING_COLUMNS. Raises as `part`."""
    pa, parquet = _pyarrow()
    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "time": pa.timestamp("us", tz="UTC")}
    schema = pa.schema([pa.field(name, kinds[kind]) for name, kind in WARNING_COLUMNS])
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [pa.array([row.get(name) for row in rows], kinds[kind]) for name, kind in WARNING_COLUMNS]
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression=COMPRESSION, version="2.6")


def _pyarrow() -> tuple[Any, Any]:
    try:
        # Half a second and 50 MB, which only those pay who write Parquet.
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise NoLake(HOW_TO_GET) from error
    return pa, parquet

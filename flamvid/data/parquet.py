"""Rows of a Parquet file, without all of its columns, nor any before the first row is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flamvid.data.files import failing, open_file

__all__ = ["ParquetRows"]


class ParquetRows:
    """The rows of one file; how many there are stands at its end, and costs no reading."""

    def __init__(self, address: str, columns: tuple[str, ...]) -> None:
        self.address = address
        with self._opened() as file:
            self._count: int = file.metadata.num_rows
            self._columns = [name for name in columns if name in file.schema_arrow.names]
        self._table: Any = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> dict[str, Any]:
        if self._table is None:
            with self._opened() as file:
                # No threads: workers are forked, and would wait for those of their parent.
                self._table = file.read(self._columns or None, use_threads=False)
        row: dict[str, Any] = self._table.slice(at, 1).to_pylist()[0]
        return row

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with failing(self.address), open_file(self.address) as file:
            from pyarrow import parquet

            yield parquet.ParquetFile(file)

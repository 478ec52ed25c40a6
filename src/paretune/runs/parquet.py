"""Parquet files, for data and for results alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.runs import disk

if TYPE_CHECKING:
    import pandas as pd


def read_parquet(path: Path) -> "pd.DataFrame":
    """The rows of a file, numbered from 0.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: it is no Parquet file.
    """
    import pandas as pd

    pyarrow = _pyarrow()
    try:
        return pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None


def write_parquet(table: "pd.DataFrame", path: Path) -> None:
    """Write the rows, whole or not at all.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the file cannot be written; the message has ``path`` and the reason.
    """
    _pyarrow()
    disk.write_atomically(path, lambda temporary: table.to_parquet(temporary, engine="pyarrow", index=False))


def _pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "paretune[parquet]"') from error
    return pyarrow

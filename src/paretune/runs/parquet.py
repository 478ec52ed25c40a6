"""Parquet files of other people, for data and for results alike."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def read_parquet(path: Path) -> "pd.DataFrame":
    """The rows of a file, numbered from 0.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: it is no Parquet file.
    """
    import pandas as pd

    try:
        import pyarrow  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "paretune[parquet]"') from error
    try:
        return pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None

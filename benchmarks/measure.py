"""What the benchmarks share: where the real pictures are, how a rate is measured, how results are told."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def real_cub() -> Path:
    """Return the folder of real CUB pictures: cub/ in $REAL_DATA, or in ../shared/data beside the repository.

    Raises:
        SystemExit: it is not there.
    """
    data_dir = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data_dir / "cub" / "CUB_200_2011" / "images").is_dir():
        raise SystemExit(f"no real CUB under {data_dir}: set REAL_DATA to a folder that holds cub/CUB_200_2011")
    return data_dir / "cub"


def best_rate(work: Callable[[], int], repeats: int) -> float:
    """Return the best of some measurements of `work`, in what it returns (pictures, say) a second."""
    rates: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - started))
    return max(rates)


def tell(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], results: Mapping[str, float | str]) -> None:
    """Print the table and the line of JSON."""
    table = Table(*columns, title=title, caption=f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}")
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)
    rounded = {key: value if isinstance(value, str) else float(f"{value:.4g}") for key, value in results.items()}
    print(json.dumps(rounded))

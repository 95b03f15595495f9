"""The whole Ray Data path, drawing to Parquet: how fast, with how much memory, and whether it stays in proportion.

Draws 1 and 5 million series of the laptop recipe through `tsd generate`'s own stage on a local Ray, after a small
draw that starts the workers, and watches the memory of the driver and all that it started. About three minutes
and 2 GB of disk, deleted afterwards. Writes data_plane.json and data_plane.png beside itself.

    python benchmarks/data_plane.py [--check]
"""

import io
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from measured import Bound, finish, parser, show
from rich.console import Console

from tsd.cluster import stages
from tsd.cluster.session import session
from tsd.generation.generator import BLOCK
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import datasets, folders, manifests

MILLION, BILLION, CORES = 1_000_000, 1_000_000_000, 1_000
COUNTS = (MILLION, 5 * MILLION)
BLOCKS_PER_PART = 32
GIB = 2**30


class Memory:
    """Samples the proportional set size of this process and all below it, so that shared pages count once."""

    def __init__(self, every: float = 0.5) -> None:
        self.samples: list[tuple[float, float]] = []  # seconds since the start, GiB
        self.every = every
        self.ended = threading.Event()

    def __enter__(self) -> "Memory":
        self.started = time.perf_counter()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(10)

    @property
    def peak(self) -> float:
        """The most that was seen, in GiB."""
        return max(used for _, used in self.samples)

    def _watch(self) -> None:
        while not self.ended.is_set():
            self.samples.append((time.perf_counter() - self.started, _used() / GIB))
            self.ended.wait(self.every)


def _used() -> int:
    """Bytes of this process and its descendants."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def draw(count: int, folder: str) -> dict[str, Any]:
    """Draw so many series and say what it took."""
    recipe = load(
        "laptop", [f"series.count={count}", f"series.blocks_per_part={BLOCKS_PER_PART}", f"out={folder}"]
    )
    with Memory() as memory:
        started = time.perf_counter()
        stages.generate(recipe, Reporter(Console(file=io.StringIO())))
        seconds = time.perf_counter() - started
    place = f"{recipe.folder}/series"
    files = list(Path(place).glob("*.parquet"))
    manifest = folders.read_json(place, manifests.MANIFEST)
    looking = time.perf_counter()
    notes = datasets.finished_parts(place, manifest["key"])
    looking = time.perf_counter() - looking
    return {
        "series": count,
        "seconds": seconds,
        "series_per_second": count / seconds,
        "peak_gib": memory.peak,
        "files": len(files),
        "bytes_per_series": sum(file.stat().st_size for file in files) / count,
        "manifest_bytes_per_file": Path(place, manifests.MANIFEST).stat().st_size / len(files),
        "note_bytes_per_file": len(json.dumps([part.note for part in notes.values()])) / len(files),
        "ms_to_look_at_a_file": 1000 * looking / len(files),
        "memory": memory.samples,
    }


def main() -> None:
    """Draw, print, keep, check."""
    options = parser(__doc__).parse_args()
    with session():
        with tempfile.TemporaryDirectory() as folder:
            draw(4 * BLOCKS_PER_PART * 1024, folder)
        results = []
        for count in COUNTS:
            with tempfile.TemporaryDirectory() as folder:
                results.append(draw(count, folder))
    curves = [result.pop("memory") for result in results]
    show("Series through Ray Data to Parquet", results)
    carried = carry_on(results[-1])
    show("Extrapolated to 1 billion series on 1,000 cores: calculated, not measured", carried)
    picture(curves).savefig(Path(__file__).with_suffix(".png"), dpi=120)
    small, large = results
    finish(
        __file__,
        {"blocks_per_part": BLOCKS_PER_PART, "results": results, "carried on": carried},
        [
            Bound("seconds for 1 million series", small["seconds"], most=90),
            Bound(
                "seconds for 5 million over seconds for 1 million", large["seconds"] / small["seconds"], 3.75, 6.25
            ),
            Bound("GiB at most, 1 million", small["peak_gib"], most=4),
            Bound("GiB at most, 5 million", large["peak_gib"], most=4),
            Bound("memory of 5 million over that of 1 million", large["peak_gib"] / small["peak_gib"], most=1.25),
        ],
        options.check,
    )


def carry_on(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """What the measured rates come to for a billion series, for parts of three sizes."""
    per_core = measured["series_per_second"] / (os.cpu_count() or 1)
    rows = []
    for blocks in (BLOCKS_PER_PART, 4 * BLOCKS_PER_PART, 16 * BLOCKS_PER_PART):
        files = -(-BILLION // (blocks * BLOCK))
        rows.append(
            {
                "blocks a part": blocks,
                "files": files,
                "MB a file": blocks * BLOCK * measured["bytes_per_series"] / 1e6,
                "GB": BILLION * measured["bytes_per_series"] / 1e9,
                "seconds to draw": BILLION / per_core / CORES,
                "GB/s to store": CORES * per_core * measured["bytes_per_series"] / 1e9,
                "files/s": CORES * per_core / (blocks * BLOCK),
                "MB of manifest": files * measured["manifest_bytes_per_file"] / 1e6,
                "MB through Ray": files * measured["note_bytes_per_file"] / 1e6,
                "seconds to look at all files": files * measured["ms_to_look_at_a_file"] / 1000,
            }
        )
    return rows


def picture(curves: list[list[tuple[float, float]]]) -> Figure:
    """Memory over time, a line a draw."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds", ylabel="GiB, driver and workers", ylim=(0, 4.2))
    for count, curve in zip(COUNTS, curves, strict=True):
        axes.plot(*zip(*curve, strict=True), label=f"{count // MILLION} million series")
    axes.axhline(4, color="0.6", linewidth=0.8, linestyle="--", label="bound")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()

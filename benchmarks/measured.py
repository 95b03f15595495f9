"""What every benchmark does with its figures: time, print, keep beside the script, hold against bounds."""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bound:
    """One claim: what was measured, and the least or the most it may be."""

    claim: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value lies within the bound."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def medians(
    works: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median seconds of each work; they take turns, so that a slow moment of the machine hits them all."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            gc.collect()  # one work's garbage is not another's
            work()  # what comes first finds cold caches and memory to ask for: that is not the rate
            started = clock()
            work()
            seconds[name].append(clock() - started)
    return {name: median(times) for name, times in seconds.items()}


def in_turns(
    works: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each work in each turn; who was first is last in the next, so each as often follows itself."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            gc.collect()  # one work's garbage is not another's
            started = clock()
            works[name]()
            seconds[name].append(clock() - started)
    return seconds


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of an environment, made once, that has some packages beside all that this one has."""
    folder = ROOT / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"Setting up {name}: half a minute, once")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (here,) = folder.glob("lib/*/site-packages")
        (here / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", "--no-deps", *packages], check=True)
        (folder / "ready").touch()
    return python


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """A server as a Python process of its own, for as long as the context lasts; its address, its first line."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table; the keys of the first row are its columns."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()))
    Console(width=110).print(table)


def parser(document: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has. `--help` prints what the script does; unknown options are refused.

    document: the script's `__doc__`. A script adds its own options before it parses.
    """
    options = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    return options


def finish(script: str, results: dict[str, Any], bounds: Sequence[Bound], check: bool = False) -> None:
    """Write the results beside the script with machine and date, and print the bounds.

    script: the benchmark's `__file__`. check: exit with 1 if a bound is missed.
    """
    record = {"machine": machine(), "date": date.today().isoformat(), **results}
    record["bounds"] = [{**vars(bound), "met": bound.met} for bound in bounds]
    Path(script).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    for bound in bounds:
        limit = " and ".join(
            f"{word} {end:g}" for word, end in (("≥", bound.least), ("≤", bound.most)) if end is not None
        )
        print(f"{'met   ' if bound.met else 'MISSED'} {bound.claim}: {bound.value:.4g} (bound {limit})")
    if check and not all(bound.met for bound in bounds):
        sys.exit(1)


def machine() -> str:
    """The machine in words, as far as it matters to a figure."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"

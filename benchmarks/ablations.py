"""What the code that exists for speed gains over the plain way of the libraries, where it is used.

Each ablation times tsd's code and the plain way on the same work in one process, in turns, and says what it gains
and what the laptop study would take without it. A gain is that of the median of the turns' ratios, the cases
weighted by how often the laptop study does them, or equally where it does none. Shares are of the 12 minutes that
the laptop study takes on two quiet cores. On one thread seconds are the processor's; those of processes are the
clock's. `--only` measures some and keeps the rest of ablations.json. Twenty minutes on two quiet cores.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py --check
    OMP_NUM_THREADS=1 python benchmarks/ablations.py --only forward --only muon
    python benchmarks/ablations.py --table    # what docs/ablations.md shows of ablations.json
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from measured import Bound, finish, machine, parser, show

STUDY = 12 * 60  # seconds
LEAST = 0.10  # gain of code that stays
MOST = 0.03  # of the laptop study, that all code below it may cost together when it goes
FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Ablation:
    """Code that exists for speed, and what would take its place."""

    code: str
    plain: str
    needed: str = ""
    """Why it may stay with a smaller gain; empty if speed is the only reason."""


ABLATIONS = {
    "forward": Ablation(
        "`lean` of `tsd/models/forward.py`, `see` of `tsd/models/vision.py`, `tsd/models/operations.py`",
        "forward pass of transformers, `logits_to_keep`, padded rows",
    ),
    "operations": Ablation(
        "`tsd/models/operations.py` alone", "torch's `rms_norm`, rotation by halves, in the patched forward pass"
    ),
    "muon": Ablation(
        "`Muon` of `tsd/training/optimizer.py`",
        "`torch.optim.Muon` beside AdamW",
        "it trains sharded matrices, which torch's does not",
    ),
    "checkpoints": Ablation(
        "`Checkpoints` of `tsd/training/checkpoints.py`: written in the background",
        "`torch.distributed.checkpoint.save`, for which training waits",
        "GPUs need not wait for a slow store",
    ),
    "decoding": Ablation("`tsd/inference/decoding.py`", "`generate` of transformers on the same batch"),
    "fast decoder": Ablation(
        "`FastDecoder` of `tsd/inference/decoding.py` alone", "the model's forward pass on the same cache"
    ),
    "plots": Ablation(
        "`tsd/plots/plotter.py` and `tsd/plots/png.py`: celiagg, ISA-L",
        "cached matplotlib background, line by matplotlib, PNG by Pillow",
    ),
    "weights": Ablation(
        "`fill` of `tsd/models/weights.py`",
        "`HuggingFaceStorageReader` of torch.distributed.checkpoint",
        "it refuses weights of other names or shapes in one line",
    ),
    "trainer": Ablation("`LowOverheadTrainer` of `tsd/cluster/low_overhead.py`", "`ray.train.torch.TorchTrainer`"),
    "imports": Ablation("`quick_imports` of `tsd/cluster/imports.py`", "imports with garbage collection"),
}


def main() -> None:
    """Measure all or some, keep the results, hold them against the bounds."""
    options = parser(__doc__)
    options.add_argument("--only", action="append", choices=ABLATIONS, help="measure this one; may be repeated")
    options.add_argument("--table", action="store_true", help="print ablations.json in Markdown and stop")
    asked = options.parse_args()
    found: dict[str, Any] = json.loads(FILE.read_text())["ablations"] if FILE.exists() else {}
    if asked.table:
        table(found)
        return
    import ablated  # slow: it loads torch, transformers and matplotlib

    for name in asked.only or ABLATIONS:
        cases = ablated.MEASURES[name]()
        found[name] = {"machine": machine(), "date": date.today().isoformat(), "cases": cases}
        FILE.write_text(json.dumps({"ablations": found}, indent=1) + "\n")  # the next one may be stopped
        columns = ("case", "ours", "plain", "low", "ratio", "high", "uses")
        show(name, [{column: case[column] for column in columns} for case in cases])
    found = {name: found[name] for name in ABLATIONS if name in found}
    finish(__file__, {"ablations": found}, bounds(found), asked.check)


@dataclass(frozen=True)
class Summary:
    """What the cases of an ablation come to."""

    gain: float
    """Time of the plain way over tsd's, minus one."""
    share: float
    """Of the laptop study, that the work takes with tsd's code."""
    cost: float
    """Of the laptop study, that the plain way would add."""


def summary(cases: Sequence[dict[str, Any]]) -> Summary:
    """Sum the cases up, weighted by their uses in the laptop study; equally if it has none."""
    used = any(case["uses"] for case in cases)
    weights = [case["uses"] / case["at_once"] if used else 1.0 for case in cases]
    ours = sum(weight * case["ours"] for weight, case in zip(weights, cases, strict=True))
    theirs = sum(weight * case["ours"] * case["ratio"] for weight, case in zip(weights, cases, strict=True))
    if not used:
        return Summary(theirs / ours - 1, 0.0, 0.0)
    return Summary(theirs / ours - 1, ours / STUDY, (theirs - ours) / STUDY)


def verdict(name: str, of: Summary) -> str:
    """Whether the code of an ablation stays. Open: the two bounds contradict each other."""
    if of.gain >= LEAST:
        return "stays"
    if ABLATIONS[name].needed:
        return f"stays: {ABLATIONS[name].needed}"
    return "goes" if of.cost <= MOST else f"open: a small gain, but over {MOST:.0%} of the study"


def bounds(found: dict[str, Any]) -> list[Bound]:
    """What stays for speed gains enough, and what goes costs little."""
    sums = {name: summary(of["cases"]) for name, of in found.items()}
    gains = [
        Bound(f"{name}: gain where it is used", of.gain, least=LEAST)
        for name, of in sums.items()
        if not ABLATIONS[name].needed
    ]
    lost = sum(max(0.0, of.cost) for name, of in sums.items() if verdict(name, of) == "goes")
    return [*gains, Bound("share of the laptop study that dropping what goes would cost", lost, most=MOST)]


def table(found: dict[str, Any]) -> None:
    """Print the results in Markdown: a line for each ablation, then a line for each case."""
    print("| ablation | code | plain way | gain | of the laptop study | dropping it costs | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name, of in found.items():
        sums, about = summary(of["cases"]), ABLATIONS[name]
        figures = [f"{round(sums.gain, 2) + 0.0:.0%}", f"{sums.share:.1%}", f"{round(sums.cost, 3) + 0.0:.1%}"]
        print(f"| {' | '.join([name, about.code, about.plain, *figures, verdict(name, sums)])} |")
    print("\n| ablation | case | tsd, ms | plain, ms | times, with quartiles | in the laptop study | date |")
    print("|---|---|---|---|---|---|---|")
    for name, of in found.items():
        for case in of["cases"]:
            times = f"{case['ratio']:.2f} ({case['low']:.2f}–{case['high']:.2f})"
            figures = [f"{1e3 * case['ours']:,.3g}", f"{1e3 * case['plain']:,.3g}", times, f"{case['uses']:,}"]
            print(f"| {' | '.join([name, case['case'], *figures, of['date']])} |")


if __name__ == "__main__":
    main()

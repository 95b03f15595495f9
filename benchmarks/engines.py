"""How fast a vLLM engine that the pipeline starts describes series: a small locally trained teacher on CPUs.

The rate is that between two numbers of series, so that no start of an engine is part of it. Both run in an
environment with vLLM (`make environments`, or the interpreter that TSD_VLLM_PYTHON names). Another checkout of
tsd, which TSD_BESIDE names, is measured in turns. The engine inside Ray Data's own pipeline, which this one
replaced, is that of commit fd32b57:

    git worktree add ../before fd32b57
    TSD_BESIDE=../before python benchmarks/engines.py

Writes engines.json. Eight minutes for each checkout.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import measured

HERE, BESIDE = "this checkout", "the checkout beside it"
PYTHON = os.environ.get("TSD_VLLM_PYTHON") or str(measured.ROOT / ".venv-vllm/bin/python")
REPEATS = int(os.environ.get("TSD_REPEATS", "2"))
FEW, MANY = 64, 1024  # series, all in one part
PICTURES = 8000  # plots that the teacher learns from
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "skip_mm_profiling": True}
TEACHER = (
    f"teacher.train.pictures={PICTURES}",
    "teacher.kind=vllm",
    "teacher.gpu=false",
    "teacher.max_model_len=2048",
    f"teacher.engine={json.dumps(ENGINE)}",
)
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
QUIET |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "TSD_CPUS": "2"}


def main() -> None:
    """Time both checkouts in turns, print the rates, hold them against each other."""
    options = measured.parser(__doc__).parse_args()
    checkouts = {HERE: measured.ROOT}
    if beside := os.environ.get("TSD_BESIDE"):
        checkouts[BESIDE] = Path(beside).resolve()
    rates: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as place:
        folders = {name: f"{place}/{number}" for number, name in enumerate(checkouts)}
        for name, checkout in checkouts.items():
            for stage in ("generate", "teacher train"):
                work(checkout, stage, folders[name], FEW)
        for _ in range(REPEATS):
            for name, checkout in checkouts.items():
                few, many = (seconds(checkout, folders[name], count) for count in (FEW, MANY))
                rates[name].append((MANY - FEW) / (many - few))
    rows = [{"way": name, "series/s": median(each)} for name, each in rates.items()]
    measured.show(f"{MANY:,} plots, an engine on {os.cpu_count()} CPUs", rows)
    bounds = []
    if beside:
        share = median(rates[HERE]) / median(rates[BESIDE])
        bounds = [measured.Bound("rate, as a share of the other checkout's", share, least=0.9)]
    measured.finish(__file__, {"series": MANY, "repeats": REPEATS, "every_rate": rates}, bounds, options.check)


def seconds(checkout: Path, folder: str, count: int) -> float:
    """Seconds of the annotation stage, the start of the engine included. count: series."""
    study = Path(folder, "laptop")
    for name in ("series", "annotations"):
        subprocess.run(["rm", "-rf", study / name], check=True)
    work(checkout, "generate", folder, count)
    (study / "timings.json").write_text("{}")
    work(checkout, "annotate", folder, count)
    return float(json.loads((study / "timings.json").read_text())["Ask the teacher"])


def work(checkout: Path, stage: str, folder: str, count: int) -> None:
    """Run a stage of a checkout in vLLM's environment."""
    sets = [f"series.count={count}", f"tracking.uri=sqlite:///{folder}/mlflow.db", *TEACHER]
    subprocess.run(
        [
            *(PYTHON, "-m", "tsd.cli", *stage.split(), "laptop", "--out", folder),
            *(word for each in sets for word in ("--set", each)),
        ],
        cwd=checkout,
        env={**os.environ, **QUIET, "PYTHONPATH": str(checkout)},
        check=True,
        timeout=900,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()

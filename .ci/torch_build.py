"""Stop the set-up before pip downloads a CUDA build of torch that nobody asked for.

In: pip's plan on standard input (`pip install --dry-run --report - torch`) and, as arguments, the Python that make
was told to use and its version, as "3.12". Out: nothing and exit code 0 for a CPU build; else one line and exit
code 1, or 0 for the default Python, whose set-up goes on.
What pip finds depends on the Python version, the platform and pip's configuration, so only the plan can tell.
"""

import json
import sys
from collections.abc import Iterable

# Bytes of each wheel for Linux x86-64 and Python 3.12, 2026-11-29; 3.11 and 3.13 differ by less than 0.1 %.
# Pip's plan has no sizes. A lock file has: uv pip compile --format pylock.toml --python-platform linux
WHEELS = {
    "cuda-bindings": 8_390_178,
    "cuda-pathfinder": 63_462,
    "cuda-toolkit": 2_512,
    "nvidia-cublas": 423_138_758,
    "nvidia-cuda-cupti": 10_715_597,
    "nvidia-cuda-nvrtc": 90_215_200,
    "nvidia-cuda-runtime": 2_243_632,
    "nvidia-cudnn-cu13": 366_173_588,
    "nvidia-cufft": 214_085_489,
    "nvidia-cufile": 1_223_672,
    "nvidia-curand": 59_544_258,
    "nvidia-cusolver": 200_941_980,
    "nvidia-cusparse": 145_942_937,
    "nvidia-cusparselt-cu13": 170_148_586,
    "nvidia-nccl-cu13": 205_976_000,
    "nvidia-nvjitlink": 46_642_491,
    "nvidia-nvshmem-cu13": 60_412_546,
    "nvidia-nvtx": 148_047,
    "torch": 526_605_292,
    "triton": 197_719_725,
}
DEFAULT = "3.11"  # the tested Python
TORCH = "2.13.0"  # the version that these sizes belong to


def refusal(packages: dict[str, str], python: str, version: str) -> str | None:
    """The line that says what a CUDA build costs and how to accept it; None for a CPU build.

    packages: the version of each package in pip's plan, by name. python: what make's PYTHON is.
    version: of that Python.
    """
    if not is_cuda_plan(packages):
        return None
    return (
        f"For Python {version} pip finds only a CUDA build of torch, a download of {size_of(packages)}. "
        f"To accept it: make setup PYTHON={python} CUDA=yes"
    )


def is_cuda_plan(packages: Iterable[str]) -> bool:
    """Whether pip would bring CUDA's libraries."""
    return any(name.startswith("nvidia-") for name in packages)


def size_of(packages: dict[str, str]) -> str:
    """The download in words; "roughly" where a package has no size here, or torch is another version."""
    exact = packages.get("torch") == TORCH and all(name in WHEELS for name in packages if is_cuda(name))
    return f"{'' if exact else 'roughly '}{size_gb(packages):.1f} GB"


def size_gb(packages: Iterable[str]) -> float:
    """The download of torch with CUDA's libraries, in units of 10^9 bytes."""
    return sum(WHEELS.get(name, 0) for name in packages) / 1e9


def is_cuda(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-"))


def main() -> None:
    python, version = sys.argv[1:]
    plan = sys.stdin.read()
    if not plan.strip():
        sys.exit(f"pip found no torch for {python}: its own message is above")
    packages = {
        each["metadata"]["name"].lower().replace("_", "-"): each["metadata"]["version"]
        for each in json.loads(plan)["install"]
    }
    if version == DEFAULT:
        if is_cuda_plan(packages):
            print(f"pip finds a CUDA build of torch: a download of {size_of(packages)}", file=sys.stderr)
        return
    line = refusal(packages, python, version)
    if line:
        sys.exit(line)


if __name__ == "__main__":
    main()

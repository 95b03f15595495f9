"""A disk that is soon full, for tests of what happens then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def mounted(options: str, folder: Path, code: str, imports: Path = TESTS) -> subprocess.CompletedProcess[str]:
    """Run Python with a small tmpfs on `folder`, in a namespace that ends with it; else skip.

    imports: the folder whose modules the code may import, besides `support`.
    """
    folder.mkdir(exist_ok=True)
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f'mount -t tmpfs -o {options} tmpfs "$0"'
    try:
        trial = subprocess.run([*enter, "sh", "-c", mount, str(folder)], capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no unshare to mount a small disk with")
    if trial.returncode:
        pytest.skip(f"this machine mounts no small disk: {trial.stderr.decode().strip()}")
    run = f'{mount} && exec "$1" -c "$2" "$0"'
    return subprocess.run(
        [*enter, "sh", "-c", run, str(folder), sys.executable, code],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{TESTS}:{imports}"},
    )

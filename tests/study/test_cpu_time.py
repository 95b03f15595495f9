"""CPU seconds are those of this process and of what it starts, also of what has ended."""

import subprocess
import sys
import time

import pytest

from tsd.study.cpu_time import metered

BUSY = "import time\nwhile time.process_time() < {}: pass"


def test_a_process_that_was_started_counts_also_after_its_end():
    with metered(0.02) as spent:
        subprocess.run([sys.executable, "-c", BUSY.format(0.6)], check=True)
        assert spent() == pytest.approx(0.6, abs=0.25)


def test_a_process_that_a_started_one_starts_counts_too():
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY.format(0.6)!r}])"
    with metered(0.02) as spent:
        subprocess.run([sys.executable, "-c", inner], check=True)
        assert spent() > 0.5


def test_work_counts_and_sleep_and_earlier_work_do_not():
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    with metered() as spent:
        time.sleep(0.3)
        slept = spent()
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        assert slept < 0.1
        assert spent() - slept == pytest.approx(0.3, abs=0.1)

"""Check, as a Ray job, what a study needs.

ray job submit --working-dir . -- python jobs/check.py RECIPE [--set A.B=VALUE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the job's working directory, where tsd is not installed

from tsd.cli import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])

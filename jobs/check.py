"""Check the prerequisites of a study, as a Ray job.

ray job submit --working-dir . -- python jobs/check.py RECIPE [--set A.B=VALUE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the job's working directory; tsd is not installed there

from tsd.cli import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])

"""Have the teacher describe the series as a Ray job.

ray job submit --working-dir . -- python jobs/annotate.py RECIPE [--set A.B=VALUE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the job's working directory, where tsd is not installed

from tsd.cli import main

if __name__ == "__main__":
    main(["annotate", *sys.argv[1:]])

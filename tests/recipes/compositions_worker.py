"""In each of several processes: the nodes whose directories are given, one after the other."""

import os
import sys
import traceback
from pathlib import Path

from accelerate.state import AcceleratorState

from meristem.recipes.node import Job
from meristem.recipes.nodes.perform import finish

for place in map(Path, sys.argv[1:]):
    AcceleratorState._reset_state()
    try:
        finish(Job.load(place))
    except Exception:
        (place / f"error-{os.environ['RANK']}").write_text(traceback.format_exc())
sys.stderr.flush()
os._exit(0)  # as in tests/processes.py

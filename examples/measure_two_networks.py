"""Measure two networks and print what a block costs.

ResCapsNet keeps the activations of every block for backward; MoCapsNet keeps the end of its stack and rebuilds the rest.
The sizes are small, so that this takes seconds; without them the paper's are measured.

    python examples/measure_two_networks.py [FOLDER]
"""

import sys
import tempfile

import capsbench

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
report = capsbench.run(["rescapsnet", "mocapsnet"], depths=[1, 2], batch_size=4, time_budget=0.1, out=f"{folder}/two-networks")

retained = report.slopes.query("metric == 'retained'")
for model, nbytes in zip(retained["model"], retained["slope"], strict=True):
    print(f"{model}: a block retains {nbytes / 1024:.0f} KiB for backward")
print(f"the records are in {report.folder}")

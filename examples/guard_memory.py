"""Fail when a block of a network retains more than before.

The first report stands for the main branch, the second for a pull request. Predicted bytes are the same on every machine, so that
they can be compared anywhere; a measured report is checked in the same way.

    python examples/guard_memory.py [FOLDER]
"""

import sys
import tempfile

import capsbench

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
before = capsbench.predict("rescapsnet", depths=[1, 2], device="cpu", batch_size=4, out=f"{folder}/before")
after = capsbench.predict("rescapsnet", depths=[1, 2], device="cpu", batch_size=4, out=f"{folder}/after")

judgement = after.check(before)
print(f"{len(judgement.regressions)} of {len(judgement.compared.comparisons)} figures are worse")
sys.exit(0 if judgement.passed else 1)

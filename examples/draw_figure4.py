"""Draw figure 4 of the paper from a report.

A report is a folder of records; nothing is measured again. The figure is one of matplotlib's, to change and to save as any other.

    python examples/draw_figure4.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import capsbench

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
report = capsbench.Report(Path(__file__).parent.parent / "reports" / "example-cpu")

figure = report.figure4(memory=["retained"])
figure.axes[0].set_title("What a block leaves for backward")
figure.savefig(folder / "figure4.png", dpi=200)
print(folder / "figure4.png")

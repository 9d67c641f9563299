"""A station whose cells take a tenth of a second and measure nothing: `python -m helpers.fake_station`.

Cells of the model `ends` end the station; those of `sleeps` never come back. With the variable
FAKE_TORCH the machine has that release of torch.
"""

import os
import time

from capsbench.sweep.launchers import station
from helpers.made import make_record

SECONDS = 0.1


def measure(cell, plan, *, environment, data_directory=None, turn=None, forks=None):
    it = cell.configuration
    if it.model == "tests:ends":
        os._exit(7)
    time.sleep(1000 if it.model == "tests:sleeps" else SECONDS)
    made = make_record(it.model, it.blocks)
    note = f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
    return made.model_copy(update={"cell": cell, "environment": environment, "time": None, "notes": [note]})


if __name__ == "__main__":
    if "FAKE_TORCH" in os.environ:
        here = station._environment()
        station._environment = lambda: here | {"packages": {**here["packages"], "torch": os.environ["FAKE_TORCH"]}}
    station.measure_cell = measure
    station.main()

"""Launchers: where the cells of a sweep are measured.

`local` is the default: this process measures one cell at a time (`capsbench.sweep.local`). `ray` and `slurm` measure many at
once, each on a device of its own. They share everything but the queue that tasks wait in:

- `options` has what a user chooses, checked before anything is measured;
- `protocol` has the three things that pass between a driver and a queue: a `Task`, its `Findings`, and an `Engine`;
- `driver` is the loop of the driver, which alone writes into the report;
- `belongings` carries a user's functions and modules to machines that lack them;
- `attendant` runs on a worker, keeps a process there, and hands tasks to it; it needs no torch;
- `station` is that process, which measures one task after another, each cell in fresh processes of its own;
- `ray` and `slurm` are the engines.

A record comes back to the driver and is on its disk before the driver takes the next one. If a worker dies, its tasks are given
to others; if the driver dies, the same command with `resume` measures what has not come back.
"""

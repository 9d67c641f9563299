"""Measurement of cells by fresh processes.

`cell` starts a process for the memory of each cell, or for the time of one that is timed alone; `worker` is that process.
`together` starts one process for the times of cells that are compared to each other; `turns` is that process, in which they
take turns, step by step. Both build the `workload` of a cell, warm it up, and measure it: bytes by `step_memory` with the
probes of `memory`, seconds by `timing` and `edges` with a `clock`.
"""

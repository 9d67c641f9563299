"""Predict what each of several processes holds when they train a network together, without any of them.

FSDP leaves each process a part of every parameter, gradient and optimizer state, and gathers the layers one after another.
What it gathers, and what forward keeps for backward, does not fall with the number of processes.

    python examples/predict_a_sharded_step.py
"""

import capsbench

report = capsbench.predict(
    "rescapsnet", depths=4, parallel=["ddp", "fsdp"], world_size=[2, 8, 64], batch_size=16, device="cpu", threads=1
)
for record in report.records:
    it, memory = record.cell.configuration, record.memory
    held, highest = memory.state_bytes + memory.gradient_bytes + memory.optimizer_bytes, memory.peak_allocated_bytes
    print(f"{it.parallel} on {it.world_size}: holds {held / 2**20:.1f} MiB, at its highest point {highest / 2**20:.1f} MiB")

"""Predict what fits on an 80 GiB GPU that is not here.

The step is followed on tensors that have shapes and no values, and its allocations are replayed by the rules of PyTorch's
allocator. A step that does not fit has the status `oom`, as it would have there.

    python examples/predict_what_fits.py
"""

import capsbench

report = capsbench.predict("rescapsnet", depths=8, batch_size=4096, kernel=["published", "auto"], gpu="h100")
for record in report.records:
    kernel = record.cell.configuration.kernel
    found = f"needs {record.memory.process_bytes / 2**30:.1f} GiB" if record.memory else f"does not fit: {record.message}"
    print(f"batch 4096, kernel {kernel}: {found}")

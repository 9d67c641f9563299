"""A group of processes that compute, and write what each of them found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def write_found(rank: int, count: int, output: Path, find: Callable[[], dict[str, Any]]) -> None:
    """Join a group (gloo), compute with one thread, and let the first process write what all have found.

    Args:
        rank: number of this process.
        count: processes of the group.
        output: file for the findings: by name a list, with one of each process. The group meets in its folder.
        find: findings of this process by name, as JSON has them; it is called within the group.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{output.parent}/meeting", rank=rank, world_size=count)
    found = find()
    gathered: list[dict[str, Any]] = [{} for _ in range(count)]
    dist.all_gather_object(gathered, found)
    if rank == 0:
        output.write_text(json.dumps({name: [one[name] for one in gathered] for name in found}))
    dist.barrier()
    dist.destroy_process_group()

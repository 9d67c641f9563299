"""The card of a day: `card.json` in the folder of the results, written before anything is measured there."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.results import replace

CARD = "card.json"


def describe_card(device: str) -> dict[str, object]:
    """Name of the card, date, and the description of the machine as reports have it: no path, no user.

    Raises:
        RuntimeError: there is no such device.
    """
    import torch

    from capsbench.measure.environment import describe

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is available")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"card": name, "date": datetime.now(UTC).date().isoformat(), "device": device, "environment": describe()}


def main() -> int:
    """Write the file, and return 2 if there is no device, or the folder holds the results of another one."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    try:
        found = describe_card(device)
    except RuntimeError as error:
        print(f"--device {device}: {error}\nname a machine that has one, or try the parts with --device cpu", file=sys.stderr)
        return 2
    path = folder / CARD
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else found
    if known["card"] != found["card"]:
        words = f"--out {folder} holds results of {known['card']}, and this machine has {found['card']}"
        print(f"{words}\nchoose another folder", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    replace(path, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Script that makes the sample of real images in the package: the first 1,024 training images of Fashion-MNIST.

    python tools/make_sample.py /usr/share/datasets/fashion-mnist

reads the IDX files of Debian's package `dataset-fashion-mnist` (MIT licence) and writes capsbench/data/sample/fashion-mnist.npz.
"""

import sys
from pathlib import Path

import numpy as np

from capsbench.data.datasets import SAMPLE_FILE, SAMPLE_SIZE, read_idx


def main(folder: Path) -> None:
    images = read_idx(folder / "train-images-idx3-ubyte.gz")[:SAMPLE_SIZE]
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")[:SAMPLE_SIZE]
    target = Path(__file__).parent.parent / "capsbench" / "data" / "sample" / SAMPLE_FILE
    np.savez_compressed(target, images=images.numpy(), labels=labels.numpy())
    print(f"{target}: {len(images)} images, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Pictures from a decoder: inputs next to reconstructions, and a capsule with one dimension after the other moved."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from capsbench.figures.styles import STYLE

Pictures = npt.NDArray[np.float32]


def reconstructions_figure(inputs: Pictures, reconstructions: Pictures, captions: Sequence[str], title: str) -> Figure:
    """Each input above its reconstruction.

    Args:
        inputs: `[N, H, W, C]`, 0 to 1.
        reconstructions: the same shape.
        captions: class that each was given.
        title: title with the network.
    """
    count = len(inputs)
    with mpl.rc_context(STYLE):
        size = min(max(1.05, 3.2 / count), 1.6)
        figure = Figure(figsize=(size * count + 0.4, 2 * size + 0.65), layout="constrained")
        axes = figure.subplots(2, count, squeeze=False)
        for row, (name, pictures) in zip(axes, (("input", inputs), ("reconstruction", reconstructions)), strict=True):
            for ax, picture in zip(row, pictures, strict=True):
                ax.imshow(_shown(picture), cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(name, fontsize=8)
        for ax, caption in zip(axes[0], captions, strict=True):
            ax.set_title(caption, fontsize=7.5)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def perturbations_figure(pictures: Pictures, steps: Sequence[float], title: str) -> Figure:
    """Pictures from the decoder: a row for each dimension of the capsule, a column for each step (Sabour et al. 2017, figure 4).

    Args:
        pictures: `[D, steps, H, W, C]`, 0 to 1.
        steps: values that were added to the dimension.
        title: title with network and image.
    """
    dimensions, count, height, width, _ = pictures.shape
    gap = max(1, width // 14)
    # White between the pictures.
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
    mosaic = padded.transpose(0, 2, 1, 3, 4).reshape(dimensions * (height + gap), count * (width + gap), -1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.48 * count + 0.9, 0.48 * dimensions * height / width + 0.9), layout="constrained")
        ax = figure.subplots()
        ax.imshow(_shown(mosaic[:-gap, :-gap]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        labels = [f"{step:+.2f}" if step else "0" for step in steps]
        ax.set_xticks((width + gap) * np.arange(count) + width / 2, labels, fontsize=7)
        rows = [str(one + 1) for one in range(dimensions)]
        ax.set_yticks((height + gap) * np.arange(dimensions) + height / 2, rows, fontsize=7)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("added to the dimension", fontsize=8)
        ax.set_ylabel("dimension of the class capsule", fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def _shown(picture: Pictures) -> Pictures:
    """A picture in the form that matplotlib takes, without a single channel."""
    return picture[..., 0] if picture.shape[-1] == 1 else picture

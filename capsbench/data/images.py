"""Images of one's own in the form that the network of a data set takes."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from capsbench.catalog import DatasetSpec
from capsbench.errors import ConfigurationError, ShapeError
from capsbench.system.paths import expanded

FORMATS = ("PNG", "JPEG")
_MODES = {1: ("L", "greyscale"), 3: ("RGB", "colour without transparency")}

ImageSource = str | os.PathLike[str] | Tensor


def read_images(images: ImageSource | Iterable[ImageSource], spec: DatasetSpec) -> Tensor:
    """Convert paths and tensors to `[N, C, H, W]`, float32 from 0 to 255, of the set's shape.

    Args:
        images: paths of png or jpg files, and tensors `[C, H, W]` or `[N, C, H, W]`, uint8 or floating point in 0 to 1; one or
            several, mixed as you like.
        spec: the data set that the network was trained on.

    Raises:
        ConfigurationError: there is no image; a file is no image, or has another size or mode; a tensor has other values.
        ShapeError: a tensor has another shape.
    """
    several: list[ImageSource] = [images] if isinstance(images, str | os.PathLike | Tensor) else list(images)
    if not several:
        raise ConfigurationError("there are no images", "give at least one")
    parts = [
        _from_tensor(place, image, spec) if isinstance(image, Tensor) else _from_file(expanded(image), spec)
        for place, image in enumerate(several, start=1)
    ]
    return torch.cat(parts)


def to_picture(pixels: Tensor) -> Image.Image:
    """A picture of pixels `[C, H, W]` from 0 to 1; values beyond are clipped."""
    values = (pixels.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).squeeze(-1).numpy())


def _from_file(path: Path, spec: DatasetSpec) -> Tensor:
    _, height, width = spec.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on images that are too large, which are refused below
            picture = Image.open(path, formats=FORMATS)
        with picture:
            _check(path, picture, spec)
            values = torch.from_numpy(np.array(picture)).float()
    except ConfigurationError:
        raise
    except FileNotFoundError:
        raise ConfigurationError(f"image {path} does not exist", "give paths of png or jpg files") from None
    except UnidentifiedImageError:
        raise ConfigurationError(f"image {path} is not a png or jpg", "give paths of png or jpg files") from None
    except Exception as error:  # a damaged file may make the decoders raise anything
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigurationError(
            f"image {path} cannot be read: {what}", "restore it, or check its permissions: it must be a png or jpg"
        ) from None
    return values.reshape(1, height, width, -1).permute(0, 3, 1, 2)


def _check(path: Path, picture: Image.Image, spec: DatasetSpec) -> None:
    channels, height, width = spec.shape
    mode, words = _MODES[channels]
    right = f"this network was trained on {spec.title}: give {width} × {height} pixels in mode {mode} ({words})"
    if picture.size != (width, height):
        raise ConfigurationError(f"image {path} has {picture.width} × {picture.height} pixels", right)
    if picture.mode != mode:
        raise ConfigurationError(f"image {path} has mode {picture.mode}", right)


def _from_tensor(place: int, image: Tensor, spec: DatasetSpec) -> Tensor:
    if tuple(image.shape[-3:]) != spec.shape or image.dim() not in (3, 4):
        raise ShapeError(
            f"image {place} has shape {list(image.shape)}",
            f"this network was trained on {spec.title}: give {list(spec.shape)}, or several as [N, C, H, W]",
        )
    batch = image.detach().cpu().reshape(-1, *spec.shape)
    if image.dtype == torch.uint8:
        return batch.float()
    if not image.is_floating_point():
        raise ConfigurationError(f"image {place} has dtype {image.dtype}", "give uint8, or floating point in 0 to 1")
    if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):  # this refuses NaN too
        raise ConfigurationError(
            f"image {place} has values from {batch.min():.4g} to {batch.max():.4g}", "give pixels in 0 to 1, or uint8"
        )
    return batch.float() * 255

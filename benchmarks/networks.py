"""Networks that are nothing of capsbench's, to hold predictions to: each a callable `(in_shape, num_classes, blocks)`.

They use what a step's memory depends on in its own way: dropout, normalisation, every backend of attention, recurrent layers,
pooling, embeddings, gates, checkpoints, and half precision. `capsbench run --models benchmarks.networks:lstm` measures one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Shape = tuple[int, int, int]
Make = Callable[[], nn.Module]

WIDTH = 64
HEADS = 4

NETWORKS = {
    "dropout": "fp32",
    "batch_norm": "fp32",
    "group_norm": "fp32",
    "pooling": "fp32",
    "squeeze": "fp32",
    "rms_norm": "fp32",
    "gated": "bf16",
    "mixer": "fp32",
    "attention_math": "fp32",
    "attention_flash": "bf16",
    "attention_efficient": "fp32",
    "attention_cudnn": "bf16",
    "transformer": "fp32",
    "lstm": "fp32",
    "gru": "fp32",
    "embedding": "fp32",
    "checkpointed": "fp32",
    "half_weights": "fp32",
}
"""Every network here, with the precision that it is measured at."""


class Flat(nn.Sequential):
    """Images as vectors of features, blocks that keep their shape `[B, WIDTH]`, and class scores."""

    def __init__(self, in_shape: Shape, num_classes: int, blocks: int, make: Make) -> None:
        channels, height, width = in_shape
        body = [make() for _ in range(blocks)]
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, WIDTH), *body, nn.Linear(WIDTH, num_classes))


class Rows(nn.Module):
    """Rows of an image as tokens, blocks that keep their shape `[B, rows, WIDTH]`, and class scores of their mean."""

    def __init__(self, in_shape: Shape, num_classes: int, blocks: int, make: Make) -> None:
        super().__init__()
        self.first = nn.Linear(in_shape[0] * in_shape[2], WIDTH)
        self.body = nn.Sequential(*(make() for _ in range(blocks)))
        self.last = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores `[B, classes]`."""
        return self.last(self.body(self.first(images.transpose(1, 2).flatten(2))).mean(1))


class Maps(nn.Sequential):
    """A convolution, blocks that keep their shape `[B, WIDTH, h, w]`, and class scores of the map's mean."""

    def __init__(self, in_shape: Shape, num_classes: int, blocks: int, make: Make) -> None:
        body = [make() for _ in range(blocks)]
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))
        super().__init__(nn.Conv2d(in_shape[0], WIDTH, 3, stride=2, padding=1), *body, pooled)


class Residual(nn.Module):
    """A shortcut around a function."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.function = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x + f(x)."""
        return x + self.function(x)


class Attention(nn.Module):
    """Self-attention by a given backend, or by plain matrix products where it does not run."""

    def __init__(self, backend: SDPBackend) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.backends = [backend] if backend == SDPBackend.MATH else [backend, SDPBackend.MATH]

    def forward(self, x: Tensor) -> Tensor:
        """x and its attention, `[B, tokens, WIDTH]`."""
        query, key, value = self.project(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(self.backends):
            found = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(found.transpose(1, 2).flatten(2))


class Gate(nn.Module):
    """A feed-forward layer with a gate: SiLU(a) · b."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x and its gated features."""
        one, other = self.both(x).chunk(2, -1)
        return x + self.out(nn.functional.silu(one) * other)


class Mixed(nn.Module):
    """A layer across tokens, and one across features."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.features = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Mixed tokens `[B, tokens, WIDTH]`."""
        x = x + self.tokens(x.mT).mT
        return x + self.features(x)


class Recurrent(nn.Module):
    """A recurrent layer over the tokens, without its last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all tokens."""
        return self.layer(x)[0]


class Squeezed(nn.Module):
    """A depthwise convolution, whose channels are scaled by what the whole map says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        narrow = nn.Conv2d(WIDTH, 8, 1), nn.ReLU(), nn.Conv2d(8, WIDTH, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), *narrow, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """x and its scaled map."""
        found = self.deep(x)
        return x + found * self.scale(found)


class Embedded(nn.Module):
    """Pixels as words of a vocabulary of 32, with learned positions."""

    def __init__(self, in_shape: Shape, num_classes: int, blocks: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(32, WIDTH), nn.Embedding(in_shape[1] * in_shape[2], WIDTH)
        self.body = nn.Sequential(*(Gate() for _ in range(blocks)))
        self.last = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores."""
        pixels = (images[:, 0].flatten(1) * 8).long().remainder(32)[:, ::14]
        places = torch.arange(0, pixels.shape[1], device=images.device)
        return self.last(self.body(self.words(pixels) + self.places(places)).mean(1))


class Checkpointed(nn.Module):
    """A function whose activations are computed again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.function = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        return checkpoint(self.function, x, use_reentrant=False)


class Halved(nn.Module):
    """A network whose weights are in bfloat16, as are its activations."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores in float32."""
        return self.network(images.to(torch.bfloat16)).float()


def dropout(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Linear layers with dropout."""
    return Flat(in_shape, num_classes, blocks, lambda: Residual(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1)))


def batch_norm(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Convolutions with batch normalisation and shortcuts."""
    return Maps(
        in_shape, num_classes, blocks,
        lambda: Residual(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)),
    )  # fmt: skip


def group_norm(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Convolutions with group normalisation."""
    return Maps(
        in_shape, num_classes, blocks, lambda: Residual(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
    )


def pooling(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Pooling, whose indices backward needs, and interpolation back to the map's size."""

    def make() -> nn.Module:
        up = nn.Upsample(scale_factor=2, mode="bilinear")
        return nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(WIDTH, WIDTH, 1), up, nn.ELU())

    return Maps(in_shape, num_classes, blocks, make)


def squeeze(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Depthwise convolutions with scaled channels."""
    return Maps(in_shape, num_classes, blocks, Squeezed)


def rms_norm(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Feed-forward layers behind root mean square normalisation."""
    return Rows(in_shape, num_classes, blocks, lambda: Residual(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()))


def gated(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Gated feed-forward layers."""
    return Rows(in_shape, num_classes, blocks, Gate)


def mixer(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Layers across tokens and across features."""
    return Rows(in_shape, num_classes, blocks, lambda: Mixed(in_shape[1]))


def attention_math(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Attention by plain matrix products."""
    return Rows(in_shape, num_classes, blocks, lambda: Attention(SDPBackend.MATH))


def attention_flash(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Flash attention."""
    return Rows(in_shape, num_classes, blocks, lambda: Attention(SDPBackend.FLASH_ATTENTION))


def attention_efficient(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Memory-efficient attention."""
    return Rows(in_shape, num_classes, blocks, lambda: Attention(SDPBackend.EFFICIENT_ATTENTION))


def attention_cudnn(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Attention by cuDNN."""
    return Rows(in_shape, num_classes, blocks, lambda: Attention(SDPBackend.CUDNN_ATTENTION))


def transformer(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Torch's own encoder layers, with dropout."""
    return Rows(in_shape, num_classes, blocks, lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True))


def lstm(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Long short-term memory, a layer of its own in each block."""
    return Rows(in_shape, num_classes, blocks, lambda: Recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True)))


def gru(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Gated recurrent units in both directions."""
    return Rows(in_shape, num_classes, blocks, lambda: Recurrent(nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)))


def embedding(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Embedded pixels and positions."""
    return Embedded(in_shape, num_classes, blocks)


def checkpointed(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Checkpointed feed-forward layers."""
    return Rows(in_shape, num_classes, blocks, Checkpointed)


def half_weights(in_shape: Shape, num_classes: int, blocks: int) -> nn.Module:
    """Weights in bfloat16."""
    return Halved(Flat(in_shape, num_classes, blocks, lambda: Residual(nn.Linear(WIDTH, WIDTH), nn.ReLU())))

"""CapsNet, ResCapsNet and MoCapsNet: one front, one stack of blocks, class capsules, a decoder.

    images → conv 9×9, ReLU → primary capsules → first capsule layer → blocks → class capsules → decoder

The three differ in their blocks alone; a block is two capsule layers f, g from 32×8 to 32×8:

    CapsNet      x ← g(f(x))
    ResCapsNet   x ← x + f(x), then x ← x + g(x)
    MoCapsNet    the momentum rule over f, g and all that follow (Momentum Capsule Networks, algorithm 1)
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from capsbench.errors import ConfigurationError, ShapeError, unknown_name
from capsbench.exporting import is_exporting
from capsbench.models.decoder import Decoder
from capsbench.models.front import can_chunk, check_front, resolve_front
from capsbench.models.layers import CapsuleLayer, PrimaryCapsules
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES, Gamma, MomentumStack, check_strategy, is_altered, run_steps, spread
from capsbench.routing import length

RULES = ("paper", "published")
"""MoCapsNet's rules: Algorithm 1 of the paper, and that of the published code."""


class CapsuleOutput(NamedTuple):
    """The output of a capsule network."""

    lengths: Tensor
    """`[B, classes]`, the class scores."""
    capsules: Tensor
    """`[B, classes, class_dim]`."""
    reconstruction: Tensor | None
    """`[B, *in_shape]`, or None without a decoder."""


class Options(TypedDict, total=False):
    """Keyword arguments of all three networks, which `CapsNet` describes."""

    channels: int
    capsules: int
    capsule_dim: int
    class_dim: int
    routing: str
    iterations: int
    kernel: str
    decoder: bool
    front: str


class CapsuleNetwork(nn.Module):
    """The common part of all capsule networks: everything but the blocks. `CapsNet` describes the other arguments.

    Args:
        make_blocks: function from layers to their stack; None if no capsule layers lie between primary and class capsules.
        convolutions: number of 9×9 convolutions before the primary capsules.
    """

    first: nn.Module
    blocks: nn.Module

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        blocks: int,
        make_blocks: Callable[[list[nn.Module]], nn.Module] | None,
        convolutions: int = 1,
        /,  # the parts of a network are no option of its users
        *,
        channels: int = 256,
        capsules: int = 32,
        capsule_dim: int = 8,
        class_dim: int = 16,
        routing: str = "rba",
        iterations: int = 3,
        kernel: str = "auto",
        decoder: bool = True,
        front: str = "auto",
    ) -> None:
        super().__init__()
        check_front(front)
        in_capsules = _primary_capsules(in_shape, channels, capsule_dim, convolutions)
        _check_positive(num_classes=num_classes, capsules=capsules, class_dim=class_dim)
        if blocks < 0:
            raise ConfigurationError(f"`blocks` {blocks} is out of range", "give 0 or more")
        self.in_shape, self.num_classes, self.front = tuple(in_shape), num_classes, front

        def layer(count: int, out_count: int, out_dim: int) -> CapsuleLayer:
            return CapsuleLayer(count, capsule_dim, out_count, out_dim, routing=routing, iterations=iterations, kernel=kernel)

        self.conv = nn.Conv2d(in_shape[0], channels, kernel_size=9)
        self.more_convs = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=9) for _ in range(convolutions - 1))
        # A module, so that what it retains has a name.
        self.relu = nn.ReLU()
        self.primary = PrimaryCapsules(channels, capsule_dim)
        if make_blocks is None:
            self.first, self.blocks = nn.Identity(), nn.Identity()
        else:
            self.first = layer(in_capsules, capsules, capsule_dim)
            self.blocks = make_blocks([layer(capsules, capsules, capsule_dim) for _ in range(2 * blocks)])
        self.classes = layer(in_capsules if make_blocks is None else capsules, num_classes, class_dim)
        self.decoder = Decoder(num_classes, class_dim, in_shape) if decoder else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsuleOutput:
        """Classify and reconstruct a batch.

        Args:
            images: `[B, *in_shape]`.
            labels: `[B]`; they only choose which capsule the decoder sees. Without them it sees the longest one,
                as the published code's does even in training.

        Raises:
            ShapeError: the images do not have `in_shape`.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.in_shape:
            raise ShapeError(
                f"images {list(images.shape)} do not fit", f"this network takes [B, {', '.join(map(str, self.in_shape))}]"
            )
        capsules = self.classes(self.blocks(self.first(self._primaries(images))))
        lengths = length(capsules)
        if self.decoder is None:
            return CapsuleOutput(lengths, capsules, None)
        shown = lengths.argmax(dim=1) if labels is None else labels
        return CapsuleOutput(lengths, capsules, self.decoder(capsules, shown))

    def _primaries(self, images: Tensor) -> Tensor:
        primary = self.primary
        # One exported program serves every batch size: it does not choose by the size that it was made with.
        front = "plain" if self.front == "auto" and is_exporting() else self.front
        chunks = resolve_front(front, images.shape[0], images.device.type) == "chunked"
        # If a module was replaced or has hooks, they are called one by one.
        own = type(primary) is PrimaryCapsules and not is_altered(primary)
        *earlier, last = (self.conv, *self.more_convs)
        for conv in earlier:
            images = self.relu(conv(images))
        if chunks and own and isinstance(last, nn.Conv2d) and can_chunk(last, primary.conv):
            # Within the call of the module, so that what it retains is found under its name.
            return primary(images, last)
        return primary(self.relu(last(images)))


class _PlainNetwork(CapsuleNetwork):
    """A network whose blocks run under plain autograd."""

    shortcut: ClassVar[bool]

    def __init__(
        self, in_shape: tuple[int, int, int], num_classes: int, blocks: int, *, memory: str = "stored", **options: Unpack[Options]
    ) -> None:
        check_strategy(memory, PLAIN_STRATEGIES)

        def stack(layers: list[nn.Module]) -> nn.Module:
            return BlockStack(layers, shortcut=self.shortcut, memory=memory)

        super().__init__(in_shape, num_classes, blocks, stack, **options)


class CapsNet(_PlainNetwork):
    """A capsule network whose blocks have no shortcut.

    Args:
        in_shape: channels, height, width of an image; at least 17 × 17.
        num_classes: number of class capsules.
        blocks: depth, in blocks of two capsule layers.
        memory: `stored`, `checkpoint` (per block), `checkpoint-sqrt` (every √n blocks) or `offload` (to the host's memory;
            no effect on a CPU).
        channels: channels of both convolutions (256).
        capsules: capsules per layer (32).
        capsule_dim: dimension of primary and hidden capsules (8).
        class_dim: dimension of class capsules (16).
        routing: algorithm: `rba` (the default), `sda`, `sda-published` or `em` (`capsbench.routing.route`).
        iterations: rounds of routing (3).
        kernel: way to compute the routing (`capsbench.routing.route`); `auto`, the default, is the fastest on a device.
        decoder: whether images are reconstructed (True).
        front: way to compute the two convolutions: `plain`; `chunked`, a part of the batch at a time, keeping the images
            alone (`capsbench.models.front`); `auto` (the default), chunked if a batch is large enough for it to cost nothing.

    Raises:
        ConfigurationError: the values make no network.
    """

    shortcut = False


class ResCapsNet(_PlainNetwork):
    """A capsule network with an identity shortcut around each layer of a block. The arguments are those of `CapsNet`."""

    shortcut = True


class MoCapsNet(CapsuleNetwork):
    """The momentum capsule network, whose stack of blocks can be run backwards.

    The arguments are those of `CapsNet`, and:

    Args:
        memory: `reversible`; `reversible-kept`, which keeps 2 × `[B, J, D]` per block and spares the routing in backward; or
            a strategy of `CapsNet`.
        gamma: the momentum term γ, 0 to 1, or one for each block; 0 cannot be reversible. With γ → 1 a block tends to that of a
            RevNet, and with γ = 1 the velocity never moves: the stack returns its input.
        learn_gamma: makes each block's γ a parameter, kept between 0 and 1 by a sigmoid, which starts at `gamma`.
        inverse: inverse of `reversible` (`capsbench.reversible.MomentumStack`).
        rule: `paper`, Algorithm 1: each capsule layer is a residual function, and one velocity runs through the whole stack.
            `published`, the rule of the published code: the velocity restarts at 0 in every block and the block's own
            shortcut is left in place, so a block computes 2x + v₁ + v₂ (and keeps x and v once per block).
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        blocks: int,
        *,
        memory: str = "reversible",
        gamma: Gamma = 0.9,
        learn_gamma: bool = False,
        inverse: str = "auto",
        rule: str = "paper",
        **options: Unpack[Options],
    ) -> None:
        check_strategy(memory, STRATEGIES)
        if rule not in RULES:
            raise unknown_name("`rule`", rule, RULES)

        def stack(layers: list[nn.Module]) -> nn.Module:
            gammas = spread(gamma, blocks, "block")  # also for the published rule, whose stacks have one block each
            if rule == "published":
                pairs = zip(_pairs(layers), gammas, strict=True)
                return nn.Sequential(*(_PublishedBlock(pair, one, memory, inverse, learn_gamma) for pair, one in pairs))
            return MomentumStack(layers, gamma, memory, inverse, segment=2, learn_gamma=learn_gamma)

        super().__init__(in_shape, num_classes, blocks, stack, **options)


class BlockStack(nn.Module):
    """Blocks of two layers under plain autograd, each layer with or without a shortcut. `[B, J, D]` → same."""

    def __init__(self, layers: list[nn.Module], *, shortcut: bool, memory: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in _pairs(layers))
        self.shortcut, self.memory = shortcut, memory

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        memory = self.memory if torch.is_grad_enabled() else "stored"
        return run_steps([self._step(block) for block in self.blocks], (x,), memory, modules=list(self.blocks))[0]

    def _step(self, block: nn.Module) -> Callable[[Tensor], tuple[Tensor]]:
        def advance(x: Tensor) -> tuple[Tensor]:
            for layer in block.children():
                x = x + layer(x) if self.shortcut else layer(x)
            return (x,)

        return advance


class _PublishedBlock(nn.Module):
    def __init__(self, layers: list[nn.Module], gamma: float, memory: str, inverse: str, learn_gamma: bool) -> None:
        super().__init__()
        self.stack = MomentumStack(layers, gamma, memory, inverse, segment=2, learn_gamma=learn_gamma)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stack(x)


def _pairs(layers: list[nn.Module]) -> list[list[nn.Module]]:
    return [layers[start : start + 2] for start in range(0, len(layers), 2)]


def _primary_capsules(in_shape: tuple[int, int, int], channels: int, capsule_dim: int, convolutions: int) -> int:
    """Number of primary capsules for an image, after `convolutions` 9×9 convolutions and one of stride 2."""
    _check_positive(channels=channels, capsule_dim=capsule_dim)
    least = 8 * convolutions + 9
    if len(in_shape) != 3 or min(in_shape) < 1 or min(in_shape[1:]) < least:
        raise ConfigurationError(
            f"`in_shape` {tuple(in_shape)} is too small or not an image",
            f"give (channels, height, width), at least {least} × {least}",
        )
    height, width = ((side - least) // 2 + 1 for side in in_shape[1:])
    values = channels * height * width
    if values % capsule_dim:
        raise ConfigurationError(
            f"`capsule_dim` {capsule_dim} does not divide the {values} values of the primary map",
            f"choose a divisor of channels × {height} × {width}",
        )
    return values // capsule_dim


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigurationError(f"`{name}` {value} is out of range", f"give `{name}` of at least 1")

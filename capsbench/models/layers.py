"""The layers that capsule networks are made of."""

import torch
from torch import Tensor, nn

from capsbench.routing import check_routing, route, squash

INITIAL_STD = 0.01
"""Standard deviation of a new transformation matrix (Momentum Capsule Networks, section 4)."""


class PrimaryCapsules(nn.Module):
    """A 9×9 convolution of stride 2 whose map is cut into capsules. `[B, C, H, W]` → `[B, I, D]`, squashed.

    A capsule is D consecutive values of the flattened (C, H, W) map, as in the published code: no permutation.
    """

    def __init__(self, channels: int, capsule_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=9, stride=2)
        self.capsule_dim = capsule_dim

    def forward(self, x: Tensor) -> Tensor:
        """The squashed capsules, in at least float32."""
        flat = self.conv(x).flatten(1)
        # Squares of half-precision values would leave its range.
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        return squash(flat.unflatten(1, (-1, self.capsule_dim)))


class CapsuleLayer(nn.Module):
    """Transforms and routes I capsules of dimension K to J capsules of dimension D. `[B, I, K]` → `[B, J, D]`.

    Args:
        in_capsules: I.
        in_dim: K.
        out_capsules: J.
        out_dim: D.
        routing: the routing algorithm.
        iterations: rounds of routing.
        kernel: how routing is computed (`capsbench.routing.route`).
    """

    def __init__(
        self,
        in_capsules: int,
        in_dim: int,
        out_capsules: int,
        out_dim: int,
        *,
        routing: str = "rba",
        iterations: int = 3,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_routing(routing, kernel, iterations)
        self.weight = nn.Parameter(torch.empty(in_capsules, in_dim, out_capsules, out_dim))
        self.routing = routing
        self.iterations = iterations
        self.kernel = kernel
        nn.init.normal_(self.weight, std=INITIAL_STD)

    def extra_repr(self) -> str:
        """Shown by `print(layer)`."""
        count, dim, out_count, out_dim = self.weight.shape
        return f"{count}×{dim} → {out_count}×{out_dim}, {self.routing} × {self.iterations}, kernel={self.kernel!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Output capsules `[B, J, D]`."""
        return route(x, self.weight, algorithm=self.routing, iterations=self.iterations, kernel=self.kernel)

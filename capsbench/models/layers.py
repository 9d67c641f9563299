"""The layers of capsule networks."""

import torch
from torch import Tensor, nn

from capsbench.models.front import chunked_front
from capsbench.routing import RouteOptions, algorithm_of, check_routing, route, route_and_vjp, route_keeping, squash

INITIAL_STD = 0.01
"""Standard deviation of a new transformation matrix (Momentum Capsule Networks, section 4)."""

INITIAL_BIAS = 0.1
"""Value of a new bias, as in the published code's SDA layer."""

INITIAL_BETA_STD = 0.2
"""Standard deviation of new β_u and β_a of EM routing."""


class PrimaryCapsules(nn.Module):
    """A 9×9 convolution of stride 2 whose map is cut into capsules. `[B, C, H, W]` → `[B, I, D]`, squashed.

    A capsule is D consecutive values of the flattened (C, H, W) map, as in the published code, without a permutation.
    """

    def __init__(self, channels: int, capsule_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=9, stride=2)
        self.capsule_dim = capsule_dim

    def forward(self, x: Tensor, before: nn.Conv2d | None = None) -> Tensor:
        """The squashed capsules, in at least float32.

        Args:
            x: what the convolution is given; or the images, if `before` is given.
            before: the convolution before this one, to compute both a part of the batch at a time (`chunked_front`).
        """
        maps = self.conv(x) if before is None else chunked_front(x, before, self.conv)
        flat = maps.flatten(1)
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
        kernel: way to compute the routing (`capsbench.routing.route`).
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
        self.bias: nn.Parameter | None
        self.beta_u: nn.Parameter | None
        self.beta_a: nn.Parameter | None
        self.weight = nn.Parameter(torch.empty(in_capsules, in_dim, out_capsules, out_dim))
        extras = algorithm_of(routing).extras
        for name in ("bias", "beta_u", "beta_a"):
            shape = (out_capsules, out_dim) if name == "bias" else (out_capsules,)
            self.register_parameter(name, nn.Parameter(torch.empty(shape)) if name in extras else None)
        self.routing, self.iterations, self.kernel = routing, iterations, kernel
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values: weight N(0, 0.01²), bias 0.1, β_u and β_a N(0, 0.2²)."""
        nn.init.normal_(self.weight, std=INITIAL_STD)
        if self.bias is not None:
            nn.init.constant_(self.bias, INITIAL_BIAS)
        for beta in (self.beta_u, self.beta_a):
            if beta is not None:
                nn.init.normal_(beta, std=INITIAL_BETA_STD)

    def extra_repr(self) -> str:
        """Text that `print(layer)` shows."""
        count, dim, out_count, out_dim = self.weight.shape
        return f"{count}×{dim} → {out_count}×{out_dim}, {self.routing} × {self.iterations}, kernel={self.kernel!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Output capsules `[B, J, D]`."""
        return route(x, self.weight, self.bias, **self._options())

    def forward_keeping(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs without a graph, and the tensors that fix their coupling (RBA: Σv `[B, J, D]`), for `forward_and_vjp`."""
        return route_keeping(x, self.weight, self.bias, **self._options())

    def forward_and_vjp(
        self, x: Tensor, grad: Tensor, kept: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """The outputs and their vector-Jacobian product from one evaluation, without a graph.

        Args:
            x: `[B, I, K]`.
            grad: gradient of the outputs, `[B, J, D]`.
            kept: from `forward_keeping` at the same x, which spares the rounds of routing.

        Returns:
            The outputs, bit for bit those of `forward`; the gradient of `(outputs * grad).sum()` for x; and those for
            `self.parameters()` in order, None for a parameter that is frozen or that a subclass has added.
        """
        value, (grad_x, *grads) = route_and_vjp(x, self.weight, grad, self.bias, **self._options(), kept=kept)
        own = [mine for mine in (self.weight, self.bias, self.beta_u, self.beta_a) if mine is not None]
        found = {id(mine): one for mine, one in zip(own, grads, strict=True) if mine.requires_grad}
        return value, grad_x, tuple([found.get(id(mine)) for mine in self.parameters()])

    def _options(self) -> RouteOptions:
        return RouteOptions(
            beta_u=self.beta_u, beta_a=self.beta_a, algorithm=self.routing, iterations=self.iterations, kernel=self.kernel
        )

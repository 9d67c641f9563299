"""Sabour's network, the baseline of the paper's table 3: its primary capsules are routed to the class capsules directly.

    images → conv 9×9, ReLU (once or twice) → primary capsules → class capsules → decoder

With one convolution it is the network of *Dynamic Routing Between Capsules* (Sabour, Frosst, Hinton 2017); a second one before
the capsules follows Xi, Bing and Jin (*Capsule Network Performance on Complex Data*, 2017), who also averaged four such
networks (`capsbench.models.ensemble`). We did not find the size of their second one; here it is 9×9, as the first.
"""

from typing import Unpack

from capsbench.errors import ConfigurationError
from capsbench.models.networks import CapsuleNetwork, Options
from capsbench.reversible import check_strategy


class SabourCapsNet(CapsuleNetwork):
    """Sabour's capsule network, whose primary capsules are routed to the class capsules directly.

    The arguments are those of `CapsNet`, and:

    Args:
        blocks: 0, since there is nothing to stack.
        convolutions: convolutions before the primary capsules, 1 or 2; an image needs at least 17 × 17 or 25 × 25 pixels.
        memory: `stored`, since there is no stack to save memory on.
        options: arguments of `CapsNet`; `capsules`, of hidden layers, has no effect.

    Raises:
        ConfigurationError: the values make no network.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        blocks: int = 0,
        *,
        convolutions: int = 1,
        memory: str = "stored",
        **options: Unpack[Options],
    ) -> None:
        if blocks != 0:
            raise ConfigurationError(f"`blocks` {blocks} is out of range", "Sabour's network has no blocks: give 0")
        if convolutions not in (1, 2):
            raise ConfigurationError(f"`convolutions` {convolutions} is out of range", "give 1 or 2")
        check_strategy(memory, ("stored",))
        super().__init__(in_shape, num_classes, 0, None, convolutions, **options)


def capsnet_2conv(
    in_shape: tuple[int, int, int], num_classes: int, blocks: int = 0, *, convolutions: int = 2, **options: Unpack[Options]
) -> SabourCapsNet:
    """Sabour's capsule network with a second convolution before its capsules (Xi et al. 2017)."""
    return SabourCapsNet(in_shape, num_classes, blocks, convolutions=convolutions, **options)

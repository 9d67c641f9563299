"""Sabour's network, the baseline of the paper's table 3: class capsules follow the primary capsules, with no capsules between.

    images → conv 9×9, ReLU (once or twice) → primary capsules → class capsules → decoder

With one convolution it is the network of *Dynamic Routing Between Capsules* (Sabour, Frosst, Hinton 2017); a second one before
the capsules is what Xi, Bing and Jin tried (*Capsule Network Performance on Complex Data*, 2017), who also averaged four such
networks (`capsbench.models.ensemble`). How large their second one is we could not find: here it is as the first, 9×9.
"""

from typing import Unpack

from capsbench.errors import ConfigurationError
from capsbench.models.networks import CapsuleNetwork, Options
from capsbench.reversible import check_strategy


class SabourCapsNet(CapsuleNetwork):
    """Sabour's capsule network, whose primary capsules are routed to the class capsules directly.

    Arguments as `CapsNet`, and:

    Args:
        blocks: 0: there is nothing to stack.
        convolutions: before the primary capsules, 1 or 2; an image has at least 17 × 17 or 25 × 25 pixels.
        memory: `stored`: there is no stack to save memory on.
        options: as `CapsNet`; `capsules`, of hidden layers, has no effect.

    Raises:
        ConfigurationError: a value that makes no network.
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
            raise ConfigurationError(f"blocks {blocks} is out of range", "Sabour's network has no blocks: give 0")
        if convolutions not in (1, 2):
            raise ConfigurationError(f"convolutions {convolutions} is out of range", "give 1 or 2")
        check_strategy(memory, ("stored",))
        super().__init__(in_shape, num_classes, 0, None, convolutions, **options)


def capsnet_2conv(
    in_shape: tuple[int, int, int], num_classes: int, blocks: int = 0, *, convolutions: int = 2, **options: Unpack[Options]
) -> SabourCapsNet:
    """Sabour's capsule network with a second convolution before its capsules (Xi et al. 2017)."""
    return SabourCapsNet(in_shape, num_classes, blocks, convolutions=convolutions, **options)

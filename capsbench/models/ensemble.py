"""Several networks as one: the mean of their class lengths decides (Xi, Bing and Jin 2017 used four).

The scores of every network lie between 0 and 1, so that no weights are needed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from capsbench.errors import ConfigurationError
from capsbench.models.networks import CapsuleNetwork, CapsuleOutput


class Ensemble(nn.Module):
    """A network that averages the class lengths of capsule networks, and shows the mean of their reconstructions.

    Args:
        networks: at least one, of the same image shape and number of classes, trained apart. They may differ in all else.

    Raises:
        ConfigurationError: there is none, one is no capsule network, or they do not fit together.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        members: list[CapsuleNetwork] = []
        for place, network in enumerate(networks, 1):
            if not isinstance(network, CapsuleNetwork):
                what = f"network {place} of the ensemble is {type(network).__name__}, whose scores are no lengths"
                raise ConfigurationError(what, "give capsule networks")
            members.append(network)
        if not members:
            raise ConfigurationError("an ensemble of no networks", "give at least one")
        self.networks = nn.ModuleList(members)
        self.in_shape, self.num_classes = members[0].in_shape, members[0].num_classes
        for place, member in enumerate(members, 1):
            if (member.in_shape, member.num_classes) != (self.in_shape, self.num_classes):
                raise ConfigurationError(
                    f"network {place} of the ensemble takes {list(member.in_shape)} to {member.num_classes} classes",
                    f"all must be alike: the first takes {list(self.in_shape)} to {self.num_classes}",
                )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> CapsuleOutput:
        """Classify a batch `[B, *in_shape]`.

        Args:
            images: the batch.
            labels: `[B]`; they only choose which capsule the decoders see. Without them it is the class that the ensemble chose.

        Returns:
            The mean of the lengths; the capsules of all, one after the other along the last dimension; and the mean of the
            reconstructions of those networks that have a decoder, None where none has.
        """
        every: list[CapsuleOutput] = [network(images, labels) for network in self.networks]
        lengths = torch.stack([out.lengths for out in every]).mean(dim=0)
        shown = lengths.argmax(dim=1) if labels is None else labels
        pairs = zip(self.networks, every, strict=True)
        decoders = [(network.decoder, out) for network, out in pairs if isinstance(network.decoder, nn.Module)]
        pictures = [decode(out.capsules, shown) for decode, out in decoders]
        reconstruction = torch.stack(pictures).mean(dim=0) if pictures else None
        return CapsuleOutput(lengths, torch.cat([out.capsules for out in every], dim=-1), reconstruction)

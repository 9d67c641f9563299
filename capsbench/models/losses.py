"""The loss of a capsule network: margin on the lengths, and the squared error of the reconstruction."""

from torch import Tensor, nn

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.models.networks import CapsuleOutput


def margin_loss(
    lengths: Tensor, labels: Tensor, *, present: float = 0.9, absent: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """Σ over batch and classes of T·max(0, m⁺ − ‖v‖)² + λ(1 − T)·max(0, ‖v‖ − m⁻)² (Sabour et al. 2017, equation 4).

    Args:
        lengths: `[B, C]`.
        labels: `[B]`, integers below C.
        present: m⁺.
        absent: m⁻.
        down_weight: λ.

    Returns:
        A scalar, summed over the batch: averaged, the first gradients would sink below Adam's epsilon.
    """
    target = nn.functional.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    wrong_absent = (present - lengths).clamp_min(0).square()
    wrong_present = (lengths - absent).clamp_min(0).square()
    return (target * wrong_absent + down_weight * (1 - target) * wrong_present).sum()


class CapsuleLoss(nn.Module):
    """Margin loss + `reconstruction_weight` · squared error, both summed over the batch, as the published code does.

    Args:
        present: m⁺.
        absent: m⁻.
        down_weight: λ of the margin loss.
        reconstruction_weight: factor of the squared error.
    """

    def __init__(
        self, present: float = 0.9, absent: float = 0.1, down_weight: float = 0.5, reconstruction_weight: float = 5e-4
    ) -> None:
        super().__init__()
        self.present, self.absent, self.down_weight = present, absent, down_weight
        self.reconstruction_weight = reconstruction_weight

    def forward(self, out: CapsuleOutput, labels: Tensor, images: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            out: output of the network.
            labels: `[B]`.
            images: target of the reconstruction, `[B, *in_shape]`; needed if the network has a decoder.
                A sigmoid reaches 0 to 1: give pixels in that range rather than normalised ones.

        Raises:
            ConfigurationError: the network reconstructs and `images` is missing.
            ShapeError: `images` and the reconstruction differ in shape.
        """
        loss = margin_loss(out.lengths, labels, present=self.present, absent=self.absent, down_weight=self.down_weight)
        if out.reconstruction is None:
            return loss
        if images is None:
            raise ConfigurationError("images is missing", "the network reconstructs: give the loss the images")
        if images.shape != out.reconstruction.shape:
            raise ShapeError(
                f"images have shape {list(images.shape)}, but the reconstruction has {list(out.reconstruction.shape)}",
                "give images of the shape that the network reconstructs",
            )
        return loss + self.reconstruction_weight * (out.reconstruction - images).square().sum()

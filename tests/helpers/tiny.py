"""A network that trains in milliseconds, and draws at random while it does; as `tiny:make`."""

from torch import nn

from capsbench.models import MoCapsNet


def make(in_shape, num_classes, blocks):
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, num_classes))


def make_explosive(in_shape, num_classes, blocks):
    """A network whose weights leave the finite numbers within some steps at any rate that is not tiny."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), Power(), nn.Linear(32, num_classes))


class Power(nn.Module):
    def forward(self, x):
        return (x * 1e9) ** 5


def make_plain(in_shape, num_classes, blocks):
    """A network without random numbers, so that several processes train it as one does."""
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, num_classes))


def make_capsules(in_shape, num_classes, blocks):
    """A small reversible network."""
    return MoCapsNet(in_shape, num_classes, blocks, channels=8, capsules=4, decoder=False)

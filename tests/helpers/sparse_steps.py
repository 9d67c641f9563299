"""Steps with sparse gradients, measured and predicted."""

from typing import Any

import torch
from torch import Tensor, nn

from capsbench import Case
from capsbench.catalog import OWN_INPUTS
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for

EXACT = ("gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_backward_bytes", "peak_allocated_bytes")


class Words(nn.Module):
    """The mean of the rows of words, and a layer."""

    def __init__(self, **options: int) -> None:
        super().__init__()
        self.rows, self.layer = nn.Embedding(200, 16, sparse=True, **options), nn.Linear(16, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.layer(self.rows(words).mean(1))


class Rows(nn.Module):
    """Products of the rows of two embeddings, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(200, 16, sparse=True), nn.Embedding(200, 16, sparse=True)

    def forward(self, words: Tensor) -> Tensor:
        return (self.left(words) * self.right(words)).sum(-1)


class Twice(Words):
    """A network that takes rows in two places, whose gradients come together."""

    def forward(self, words: Tensor) -> Tensor:
        return self.layer(self.rows(words).mean(1) + self.rows(words.flip(0)).mean(1))


class Bags(nn.Module):
    """Sums of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.EmbeddingBag(200, 16, mode="sum", sparse=True), nn.Linear(16, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.layer(self.rows(words))


class Rounded(Words):
    """Rows of words that a layer chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((self.choose(x).abs() * 30).long())


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def momentum(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def adagrad(parameters):
    return torch.optim.Adagrad(parameters, 0.1)


def sparse_adam(parameters):
    return torch.optim.SparseAdam(list(parameters), 0.1)


KINDS = {
    "SGD": (Words, sgd),
    "momentum": (Words, momentum),
    "Adagrad": (Words, adagrad),
    "SparseAdam": (Rows, sparse_adam),
    "padding": (lambda: Words(padding_idx=0), sgd),
    "twice": (Twice, sgd),
    "bags": (Bags, sgd),
}


def sparse(kind="SGD"):
    make, optimizer = KINDS[kind]
    words = torch.arange(48).reshape(8, 6) % 31
    return Case(make(), words, loss=lambda out: out.square().mean(), optimizer=optimizer)


def rounded():
    return Case(Rounded(), torch.rand(8, 6), loss=lambda out: out.square().mean(), optimizer=adagrad)


def asked(name, **settings):
    return Configuration(
        model=f"{__name__}:{name}", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=tuple(settings.items()), device="cpu",
        threads=1,
    )  # fmt: skip


def figures_of(kind: str) -> tuple[dict[str, Any], dict[str, Any], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Measured and predicted figures, and the notes of the trace."""
    configuration = asked("sparse", kind=kind)
    measured, traced = memory_figures(probed_step(configuration)), trace_for(configuration)
    predicted = predict_memory(configuration, traced).memory
    before, after = ({name: getattr(one, name) for name in EXACT} for one in (measured, predicted))
    return before, after, (traced.notes, traced.unsure)

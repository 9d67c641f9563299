"""Single operators with their derivatives: followed on shapes, they take the bytes that they take when they are run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from capsbench.tracing import counting
from capsbench.tracing.attribution import nodes_of
from capsbench.tracing.follow import following

needs_allocator = pytest.mark.skipif(counting.installed() is None, reason="there is nothing that counts what libraries take")
Function = Callable[[Tensor], Tensor]

COLUMNS = torch.arange(48).reshape(16, 3) % 8
ROWS = torch.arange(24) * 5 % 16
MASK = torch.arange(128).reshape(16, 8) % 3 == 0
WEIGHT = torch.arange(64.0).reshape(8, 8)


def overwritten(rows: bool) -> Function:
    def function(y: Tensor) -> Tensor:
        z = y.clone()
        z[MASK[:, 0] if rows else MASK] = 0
        return z

    return function


def doubled_outside(y: Tensor) -> Tensor:
    with torch.no_grad():
        z = y * 2
    return y + z


WITH_OUT_OF_PLACE_FORMS: dict[str, Function] = {
    "gather": lambda y: y.gather(1, COLUMNS),
    "rows": lambda y: y[ROWS],
    "pairs": lambda y: y[ROWS, ROWS % 8],
    "a mask": lambda y: y[MASK],
    "masked_select": lambda y: torch.masked_select(y, MASK),
    "masked_select of rows": lambda y: torch.masked_select(y, MASK[:, :1]),
    "index_select": lambda y: y.index_select(1, COLUMNS[0]),
    "take": lambda y: y.take(ROWS),
    "topk": lambda y: y.topk(3).values,
    "sort": lambda y: y.sort(1).values,
    "maximum": lambda y: y.max(1).values,
    "median": lambda y: y.median(1).values,
    "cummax": lambda y: y.cummax(1).values,
    "two tensors": lambda y: torch.maximum(y, y.flip(0)),
    "a linear layer of a transposed tensor": lambda y: torch.nn.functional.linear(
        y.reshape(2, 8, 8).transpose(0, 1), torch.ones(3, 8), torch.ones(3)
    ),
    "own zeros": lambda y: torch.zeros_like(y).scatter_add(1, COLUMNS, y[:, :3]),
    "shares of the largest": lambda y: torch.zeros(16, 8).scatter_reduce(1, COLUMNS, y[:, :3], "amax"),
}
WITH_NUMBERS: dict[str, Function] = {
    "a product": lambda y: y * 2,
    "a product in place": lambda y: (y + 1).mul_(0.5),
    "a product without gradients": doubled_outside,
    "a quotient": lambda y: y / 3,
    "a number of C++": lambda y: torch.trapezoid(y),
    "a product with a complex number": lambda y: (y * 2j).real,
    "a comparison after a product": lambda y: (lambda z: z * (z > 0.5))(y * 2),
    "an integer's half": lambda y: y * (torch.arange(8) / 2),
}
WITH_BUFFERS: dict[str, Function] = {
    "a row for each of a batch": lambda y: torch.nn.functional.linear(y[:1].expand(64, 1, 8), WEIGHT, WEIGHT[0]),
    "a product of a row for each": lambda y: y[:1].expand(64, 8) @ WEIGHT,
    "means of what is scattered": lambda y: torch.zeros(16, 8).scatter_reduce(1, COLUMNS, y[:, :3], "mean"),
    "one number by a mask": overwritten(rows=False),
    "one number by rows": overwritten(rows=True),
    "a sample": lambda y: y.gather(1, torch.multinomial(y.detach().softmax(1), 3)),
    "attention": lambda y: torch.nn.functional.scaled_dot_product_attention(*[y.reshape(1, 2, 8, 8)] * 3, is_causal=True),
    "group norm": lambda y: torch.nn.functional.group_norm(y.reshape(4, 8, 4), 2),
    "roll": lambda y: y.roll((1, 2), (0, 1)),
    "fft": lambda y: torch.fft.rfft(y, n=12, dim=0).abs(),
    "windows": lambda y: y.unfold(1, 4, 2) * 2,
    "narrow indices": lambda y: y.gather(1, COLUMNS.int()),
    "a sum in another type": lambda y: y.sum(1, dtype=torch.float64),
    "the size of complex numbers": lambda y: torch.fft.fft(y).abs(),
    "narrow numbers by index": lambda y: y.bfloat16().gather(1, COLUMNS).float(),
    "narrow sums over several dimensions": lambda y: y.bfloat16().reshape(4, 4, 8).sum((0, 2)).float(),
    "fractions of whole numbers": lambda y: y * torch.arange(8).sin() * (torch.arange(8) * 0.5),
    "a truth value and a number": lambda y: y * (MASK == 1),
    "a product of every other column": lambda y: y[:, ::2] @ y[:4],
    "products of expanded matrices": lambda y: torch.bmm(y.reshape(2, 8, 8), y[0, 0].expand(2, 8, 3)),
    "a sum of expanded biases": lambda y: torch.addmm(y[:, :1].expand(16, 4), y, y[:8, :4]),
    "infinite": lambda y: y * y.isinf(),
    "random numbers": lambda y: y + torch.normal(y.detach(), torch.ones(16, 8)),
    "patches": lambda y: torch.nn.functional.unfold(y.reshape(1, 2, 8, 8), 3),
    "a sum of patches": lambda y: torch.nn.functional.fold(y.reshape(1, 8, 16), (5, 5), 2),
    "rrelu": lambda y: torch.nn.functional.rrelu(y, training=True),
}
OPERATORS = WITH_OUT_OF_PLACE_FORMS | WITH_NUMBERS | WITH_BUFFERS


def peak_and_rest(events: list[int]) -> tuple[int, int]:
    alive = np.cumsum([0, *events])
    return int(alive.max()), int(alive[-1])


def run(function: Function) -> list[tuple[int, int]]:
    """Peak and remaining bytes of forward and of backward, as counted."""
    y = torch.rand(16, 8).requires_grad_()
    for _ in range(2):  # a library's lasting buffers are made once
        y.grad = None
        forward = counting.Log()
        out = function(y)
        made = forward.close()[:, 1].tolist()
        gradient = torch.ones_like(out)
        backward = counting.Log()
        out.backward(gradient)
        taken = backward.close()[:, 1].tolist()
        del out
    return [peak_and_rest(made), peak_and_rest(taken)]


def follow(function: Function) -> list[tuple[int, int]]:
    """Peak and remaining bytes of forward and of backward, as traced."""
    with following("cpu", try_scratch=True) as followed:
        blocks = followed.blocks
        y = torch.rand(16, 8).requires_grad_()
        first = blocks.events()
        out = function(y)
        between = blocks.events()
        followed.numbers.follow(nodes_of([out]))
        gradient = torch.ones_like(out)
        second = blocks.events()
        out.backward(gradient)
        made, taken = blocks.bytes_of_event[first:between], blocks.bytes_of_event[second:]
        assert not followed.notes
    return [peak_and_rest(made), peak_and_rest(taken)]


@needs_allocator
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_takes_what_is_predicted(name):
    assert follow(OPERATORS[name]) == run(OPERATORS[name])


def test_a_window_takes_the_same_memory_each_time():
    """Torch cuts a window from a longer one, and forgets so where it makes the same window without values again."""
    real = torch.hann_window(20).untyped_storage().nbytes()
    for _ in range(2):
        with following("cpu"):
            assert [torch.hann_window(20).untyped_storage().nbytes() for _ in range(2)] == [real, real]


OTHER_WAYS: dict[str, Function] = {
    "masked_fill of a constant": lambda y: torch.zeros(16, 8).masked_fill(MASK, y[0, 0]),
    "cumprod": lambda y: y.cumprod(1),
    "prod": lambda y: y.prod(1),
    "max": lambda y: y.max(),
    "median": lambda y: y.median(),
    "addcmul": lambda y: torch.addcmul(y, y, y, value=0.5),
    "binary_cross_entropy": lambda y: torch.nn.functional.binary_cross_entropy(torch.full((16, 8), 0.3), y.sigmoid()),
    "masked_fill": lambda y: y.masked_fill(MASK, y[0, 0]),
    "quantile": lambda y: torch.quantile(y, 0.3, dim=1),
    "nanquantile": lambda y: y.nanquantile(0.3, dim=1),
}


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_an_operator_that_reads_values_to_choose_its_way_is_no_certainty(name):
    with following("cpu") as followed:
        y = torch.rand(16, 8)
        if "quantile" not in name:
            OTHER_WAYS[name](y)
            assert not followed.unsure
        OTHER_WAYS[name](y.requires_grad_())
        (note,) = followed.unsure
    assert name.partition(" ")[0] in note

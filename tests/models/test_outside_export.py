"""`torch.export` with a batch size that is not known."""

import pytest
import torch
from torch import nn

from capsbench.cases.factories import BUILT_IN
from capsbench.catalog import WITHOUT_BLOCKS
from capsbench.reversible import STRATEGIES, MomentumStack

SMALL = {"channels": 8}
OPTIONS = [
    {},
    {"front": "plain"},
    {"front": "chunked"},
    {"kernel": "reference"},
    {"kernel": "published"},
    {"kernel": "recompute"},
    {"routing": "sda"},
    {"routing": "em"},
    {"decoder": False},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [*(("mocapsnet", one) for one in OPTIONS), *((one, {}) for one in BUILT_IN if one != "mocapsnet")],
    ids=str,
)
def test_one_program_serves_every_batch_size(name, options):
    blocks = {} if name in WITHOUT_BLOCKS else {"capsules": 4}
    network = BUILT_IN[name]((1, 28, 28), 10, int(bool(blocks)), **SMALL, **blocks, **options).eval()
    images = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
    program = torch.export.export(network, (torch.zeros(4, 1, 28, 28),), dynamic_shapes=images).module()
    for batch in (1, 3, 37):
        x = torch.rand(batch, 1, 28, 28)
        for found, wanted in zip(program(x), network(x), strict=True):
            if wanted is not None:
                # EM squares and sums in another order where its tiles are others.
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("memory", STRATEGIES)
def test_a_stack_is_exported_as_its_plain_loop(memory):
    stack = MomentumStack([nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4)], memory=memory)
    rows = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(stack, (torch.zeros(4, 3),), dynamic_shapes=rows).module()
    for batch in (1, 37):
        x = torch.randn(batch, 3)
        found, wanted = program(x), stack(x)
        torch.testing.assert_close(found, wanted)
        gradients = (torch.autograd.grad(y.sum(), it.parameters()) for y, it in ((found, program), (wanted, stack)))
        torch.testing.assert_close(*gradients)


def test_a_chosen_batch_size_still_chooses_the_front():
    network = BUILT_IN["capsnet"]((1, 28, 28), 10, 1, capsules=4, **SMALL)
    for batch, expected in ((4, False), (37, True)):
        found = network(torch.rand(batch, 1, 28, 28)).lengths
        nodes, left = set(), [found.grad_fn]
        while left:
            node = left.pop()
            if node is not None and node not in nodes:
                nodes.add(node)
                left += [before for before, _ in node.next_functions]
        assert any("_Front" in type(node).__name__ for node in nodes) is expected

"""Cases with training steps of their own, as users write them, each with the loss from which backward first starts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import backward, grad

from capsbench import Case

WIDTH = 24


def layers(blocks: int) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(blocks) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())), nn.Linear(WIDTH, 3))


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def loss_of(module: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(module(images), labels)


def case_of(train: Callable[..., object], blocks: int, batch_size: int, optimizer: Any = adam) -> Case:
    images, labels = torch.rand(batch_size, WIDTH), torch.randint(3, (batch_size,))
    return Case(layers(blocks), (images, labels), train=train, optimizer=optimizer, inference=images)


def zeroes_first(blocks=2, batch_size=7):
    def train(module, optimizer, batch):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()

    return case_of(train, blocks, batch_size)


def zeroes_between(blocks=2, batch_size=7):
    """Gradients of the step before live through forward, and are freed at its end."""

    def train(module, optimizer, batch):
        loss = loss_of(module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return "anything", loss

    return case_of(train, blocks, batch_size)


def zeroes_last(blocks=2, batch_size=7):
    def train(module, optimizer, batch):
        loss = loss_of(module, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return case_of(train, blocks, batch_size)


def fills_with_zeros(blocks=2, batch_size=7):
    """Gradients stay where they are."""

    def train(module, optimizer, batch):
        optimizer.zero_grad(set_to_none=False)
        loss_of(module, batch).backward()
        optimizer.step()

    return case_of(train, blocks, batch_size)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=False, foreach=False)


def with_momentum(blocks=2, batch_size=7):
    return case_of(zeroes_first().train, blocks, batch_size, sgd)


def in_two_parts(blocks=2, batch_size=7):
    """Gradients are added up over two parts of the batch."""

    def train(module, optimizer, batch):
        optimizer.zero_grad()
        for part in zip(*(one.chunk(2) for one in batch), strict=True):
            loss_of(module, part).backward()
        optimizer.step()

    return case_of(train, blocks, batch_size)


def by_hand(blocks=2, batch_size=7):
    """Gradients that are no attributes of parameters, and no optimizer of torch."""

    def train(module, optimizer, batch):
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss_of(module, batch), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.1)

    return case_of(train, blocks, batch_size, None)


def by_imported_names(blocks=2, batch_size=7):
    """Gradients by functions that are known by their own names: the first half of them, and then the other."""

    def train(module, optimizer, batch):
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        first, *others = module.parameters()
        (first.grad,) = grad(loss, [first], retain_graph=True)
        backward(loss, inputs=others)
        optimizer.step()

    return case_of(train, blocks, batch_size)


def functional(blocks=2, batch_size=7):
    """Gradients by a transform, which have a graph themselves."""

    def train(module, optimizer, batch):
        def loss(parameters):
            images, labels = batch
            return nn.functional.cross_entropy(torch.func.functional_call(module, parameters, (images,)), labels)

        gradients = torch.func.grad(loss)({name: one.detach() for name, one in module.named_parameters()})
        for name, parameter in module.named_parameters():
            parameter.grad = gradients[name]
        optimizer.step()
        optimizer.zero_grad()

    return case_of(train, blocks, batch_size)


def penalized_loss(module: nn.Module, batch: Any) -> Tensor:
    images = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(module(images).sum(), images, create_graph=True)
    return loss_of(module, batch) + slope.square().sum()


def with_a_penalty(blocks=2, batch_size=7):
    """The loss contains a gradient, whose graph backward needs too."""

    def train(module, optimizer, batch):
        optimizer.zero_grad()
        penalized_loss(module, batch).backward()
        optimizer.step()

    return case_of(train, blocks, batch_size)


class Pair(nn.Module):
    """A generator and a discriminator."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.generator, self.discriminator = layers(blocks), layers(blocks)
        self.generator[-1], self.discriminator[-1] = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)


def discriminator_loss(pair: nn.Module, batch: Any) -> Tensor:
    noise, real = batch
    with torch.no_grad():
        made = pair.generator(noise)
    return pair.discriminator(made).square().mean() + (pair.discriminator(real) - torch.ones(())).square().mean()


def adversarial(blocks=2, batch_size=7):
    """Two networks with two optimizers, which call backward in turn."""
    pair = Pair(blocks)

    def train(module, optimizers, batch):
        optimizers["discriminator"].zero_grad()
        discriminator_loss(module, batch).backward()
        optimizers["discriminator"].step()
        optimizers["generator"].zero_grad()
        module.discriminator(module.generator(batch[0])).square().mean().backward()
        optimizers["generator"].step()

    def optimizers(_):
        return {name: adam([*getattr(pair, name).parameters()]) for name in ("generator", "discriminator")}

    noise, real = torch.rand(batch_size, WIDTH), torch.rand(batch_size, WIDTH)
    return Case(pair, (noise, real), train=train, optimizer=optimizers, inference=noise)


def adversarial_at_once(blocks=2, batch_size=7):
    """The generator's graph waits while the discriminator goes backward; a number in it is a tensor of its own."""
    pair = Pair(blocks)

    def train(module, optimizers, batch):
        made = module.generator(batch[0]) * 0.5
        optimizers[1].zero_grad()
        module.discriminator(torch.cat([made.detach(), batch[1]])).square().mean().backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        module.discriminator(made).square().mean().backward()
        optimizers[0].step()

    def optimizers(_):
        return [adam([*part.parameters()]) for part in (pair.generator, pair.discriminator)]

    noise, real = torch.rand(batch_size, WIDTH), torch.rand(batch_size, WIDTH)
    return Case(pair, (noise, real), train=train, optimizer=optimizers, inference=noise)


def both_losses(pair: nn.Module, batch: Any) -> Tensor:
    """The discriminator's loss with the generator's output, which waits meanwhile."""
    made = pair.generator(batch[0]) * 0.5
    loss = pair.discriminator(torch.cat([made.detach(), batch[1]])).square().mean()
    loss.waiting = made
    return loss


def with_a_closure(blocks=2, batch_size=7):
    """An optimizer that calls forward and backward itself, several times."""

    def train(module, optimizer, batch):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(module, batch)
            loss.backward()
            return loss

        optimizer.step(closure)

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2, history_size=2)

    return case_of(train, blocks, batch_size, lbfgs)


FIRST_LOSSES: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    **dict.fromkeys(
        (
            "zeroes_first",
            "zeroes_between",
            "zeroes_last",
            "fills_with_zeros",
            "with_momentum",
            "by_hand",
            "by_imported_names",
            "with_a_closure",
        ),
        loss_of,
    ),
    "in_two_parts": lambda module, batch: loss_of(module, [one.chunk(2)[0] for one in batch]),
    "with_a_penalty": penalized_loss,
    "adversarial": discriminator_loss,
    "adversarial_at_once": both_losses,
}
"""The loss from which backward first starts in each step."""

BACKWARD_CALLS = {"in_two_parts": 2, "by_imported_names": 2, "adversarial": 2, "adversarial_at_once": 2, "with_a_closure": 2}
"""Calls of backward in a step, if there are several."""

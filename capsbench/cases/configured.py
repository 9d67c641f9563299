"""The case that a configuration stands for: the one that a user's function makes, or a classifier with a batch of images."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from capsbench.cases.builders import ImagesCase
from capsbench.cases.case import CallArguments, Case, check_inputs, check_loss, described
from capsbench.cases.factories import ModelFactory, build_model, builder_behind, keeping_less, option_not_taken, resolve_model
from capsbench.cases.foreign import CASE_CALL, make_lazy_parameters, noting_call, settings_of, takes_labels
from capsbench.catalog import OWN_INPUTS
from capsbench.data.datasets import load_images, random_images
from capsbench.data.preprocess import Batch, training_batch
from capsbench.errors import ConfigurationError, suggesting
from capsbench.models import CapsuleLoss, CapsuleOutput
from capsbench.options import Configuration

SEED = 0
"""Seed of weights, and of the crops of a batch."""

Output = CapsuleOutput | Tensor
"""Output of a classifier."""


def case_on_device(configuration: Configuration, data_directory: Path | None = None) -> tuple[Case, str | None]:
    """The case of a configuration on its device, and the source of a classifier's images.

    Raises:
        ConfigurationError: the configuration makes no network, or the batch is larger than the data.
    """
    device = torch.device(configuration.device)
    if configuration.dataset == OWN_INPUTS:
        case = build_case(configuration, device)
        _check_values(configuration.model, case.module, case.tensors())
        return case.to(device), None
    size = configuration.images()
    if configuration.images_are_random():
        data = random_images(configuration.spec(), size)
    else:
        data = load_images(configuration.dataset, data_directory)
        check_batch_size(size, len(data.images), data.spec.name)
    # A copy of the labels, since a slice would keep all labels of the set alive.
    first = data.images[:size], data.labels[:size].clone()
    generator = torch.Generator().manual_seed(SEED)
    batch = Batch(*(part.to(device) for part in training_batch(*first, generator)))
    source = data.source
    del data, first
    model = build_model(configuration)
    _check_values(configuration.model, model, ())
    return classifier_case(configuration, model.to(device), batch), source


def _check_values(name: str, module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse tensors on the device meta, which have no values to compute with.

    Raises:
        ConfigurationError: a parameter or a buffer of the network is there, or an input.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    found = [f"its '{key}'" for key, one in named if one.is_meta] or ["an input" for one in inputs if one.is_meta]
    if found:
        raise ConfigurationError(
            f"model '{name}' cannot be run: {found[0]} is on the device meta, and has no values",
            "make it without torch.device('meta') to measure it, or predict its memory, which takes shapes alone",
        )


def build_case(configuration: Configuration, device: torch.device, factory: ModelFactory | None = None) -> Case:
    """The case of a configuration whose function makes cases, as the function made it.

    Args:
        configuration: configuration of the case.
        device: device of the tensors that are made without one, those that the loss function holds included.
        factory: the function, where the configuration's name does not lead to it.

    Raises:
        ConfigurationError: the function does not take a setting, or returned no case.
    """
    name = configuration.model
    factory = factory or resolve_model(name)
    given = case_settings(configuration)
    refused = option_not_taken(factory, (), given)
    if refused is not None:
        known = list(settings_of(factory) or {})
        raise ConfigurationError(
            f"model '{name}' takes no {refused}", suggesting(refused, known, f"it takes {', '.join(known) or 'nothing'}")
        )
    try:
        with nullcontext() if device.type == "cpu" else device:
            with noting_call(CASE_CALL):
                case: object = factory(**given)
            if isinstance(case, Case):
                check_loss(case)
                check_inputs(case)
    except ConfigurationError as error:
        raise ConfigurationError(f"model '{name}': {error.what}", error.hint) from None
    if not isinstance(case, Case):
        raise ConfigurationError(
            f"model '{name}' returned {described(case)}",
            "it must return a capsbench.Case, or take (in_shape, num_classes, blocks) and return a classifier; one that builds a "
            "network for images by itself must say so: '-> torch.nn.Module'",
        )
    make_lazy_parameters(name, case.module, lambda: case.output(training=True))
    keeping_less(case.module, configuration)
    return case


def case_settings(configuration: Configuration) -> dict[str, Any]:
    """The settings that the function of a case is called with, by name."""
    own = {"blocks": configuration.blocks or None, "batch_size": configuration.batch_size}
    return {name: value for name, value in own.items() if value is not None} | dict(configuration.settings or ())


def classifier_case(configuration: Configuration, model: nn.Module, batch: Batch) -> Case:
    """The case of a classifier: images, labels by name where the network takes them, and the loss of its output.

    Args:
        configuration: configuration of the network.
        model: network from `build_model`.
        batch: images and labels of a step.
    """
    capsule_loss = CapsuleLoss()
    if builder_behind(configuration) is not None:
        return ImagesCase(
            model,
            batch.images,
            loss=lambda out, given: scores_loss(out, Batch(*given), configuration),
            targets=tuple(batch),
            loss_under_autocast=False,
            model=configuration.model,
            shape=configuration.spec().shape,
        )
    # By name, since a network's second argument may be another one.
    labels = {"labels": batch.labels} if takes_labels(model) else {}
    return Case(
        model,
        CallArguments((batch.images,), labels),
        loss=lambda out, given: loss_of(out, Batch(*given), configuration, capsule_loss),
        targets=tuple(batch),
        inference=batch.images,
        loss_under_autocast=False,
    )


def loss_of(out: Output, batch: Batch, configuration: Configuration, capsule_loss: CapsuleLoss) -> Tensor:
    """The capsule loss of a capsule network, or the cross-entropy of another model's class scores, summed over the batch.

    Raises:
        ConfigurationError: the model returned neither.
    """
    if isinstance(out, CapsuleOutput):
        return capsule_loss(out, batch.labels, batch.pixels)
    expected = (len(batch.labels), configuration.spec().classes)
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigurationError(
            f"model '{configuration.model}' returned {got}",
            f"it must return class scores of shape {list(expected)}, or a CapsuleOutput",
        )
    return nn.functional.cross_entropy(out.float(), batch.labels, reduction="sum")


def scores_loss(out: Any, batch: Batch, configuration: Configuration) -> Tensor:
    """The cross-entropy of class scores, summed over the batch and, if a network in training has several heads, over these.

    Raises:
        ConfigurationError: the model returned no class scores.
    """
    expected = (len(batch.labels), configuration.spec().classes)
    heads = [one for one in tree_leaves(out) if isinstance(one, Tensor) and tuple(one.shape) == expected]
    if not heads or (isinstance(out, Tensor | Mapping) and heads[0] is not out):
        raise ConfigurationError(
            f"model '{configuration.model}' returned {described(out)}, which is not class scores of shape {list(expected)}",
            "give the number of its `classes`, or write a function that returns a capsbench.Case with a loss of its output",
        )
    losses = [nn.functional.cross_entropy(one.float(), batch.labels, reduction="sum") for one in heads]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def check_batch_size(batch_size: int, available: int, dataset: str) -> None:
    """Refuse a batch that the data cannot fill.

    Raises:
        ConfigurationError: it is larger than the data.
    """
    if batch_size > available:
        raise ConfigurationError(
            f"`batch_size` {batch_size} is larger than the data: '{dataset}' has {available} images here",
            f"choose 1 to {available}, or put a larger set on disk ('capsbench list' says where)",
        )

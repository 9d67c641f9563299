"""One training step and one inference step of a configuration, as they are measured."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from capsbench.cases.builders import ImagesCase
from capsbench.cases.case import OPTIMIZERS, CallArguments, Case, OptimizerFactory, TrainStep, check_inputs, check_loss, described
from capsbench.cases.factories import ModelFactory, build_model, builder_behind, keeping_less, option_not_taken, resolve_model
from capsbench.cases.foreign import keeping_threads, make_lazy_parameters, settings_of, takes_labels
from capsbench.data.datasets import load_images, random_images
from capsbench.data.preprocess import Batch, training_batch
from capsbench.errors import CapsbenchError, ConfigurationError, error_line, suggesting, unknown_name
from capsbench.models import CapsuleLoss, CapsuleOutput
from capsbench.options import OPTIONS, OWN_INPUTS, Configuration
from capsbench.parallel import distributed, reshard
from capsbench.phases import UNOBSERVED, Phases, StepObserver
from capsbench.reversible import lists_kept_less, named_lists, refuse_uncalled
from capsbench.stepping import step_in_backward

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types to which autocast casts."""

OPTIMIZER_STEPS = tuple(OPTIONS["optimizer_step"].choices)
"""Times of the optimizer's step: after backward, or for each parameter inside it."""

SEED = 0

Output = CapsuleOutput | Tensor


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


class Workload:
    """A case, its optimizer and its inputs on a device, ready to step.

    The optimizer steps after backward, or inside it, so that gradients never live together (`capsbench.stepping`). One batch
    serves all steps: preparing it is not part of what is measured, and neither memory nor time depend on pixel values.

    Args:
        configuration: configuration to build.
        data_directory: folder of the real data sets.
        case: case in place of the configuration's own; it stays where it is.

    Raises:
        ConfigurationError: the configuration makes no network, or the batch is larger than the data.
    """

    def __init__(self, configuration: Configuration, data_directory: Path | None = None, *, case: Case | None = None) -> None:
        self.configuration = configuration
        step = configuration.optimizer_step or "after"
        check_optimizer_step(step, configuration.precision)
        self.data_source: str | None = None
        with keeping_threads(configuration.model) as self._notes:
            if case is None:
                seed_everything()
                case, self.data_source = case_on_device(configuration, data_directory)
        lists = _lists_that_keep_less(configuration, case.module)
        self._notes += lists
        self._layers_unseen = bool(lists)
        # One that trains may have parts in evaluation mode, such as frozen statistics.
        self.model = case.module if case.module.training else case.module.train()
        self.given = case.tensors()
        """The tensors that the network and the loss are given."""
        # A step that is traced without its device comes with a case that has the device.
        self.device = next((tensor.device for tensor in [*self.given, *self.model.parameters()]), torch.device("cpu"))
        self.case = _in_a_group(configuration, case, self.device)
        self.first_steps = 2 if configuration.parallel == "ddp" else 1
        """Steps after which all others are alike: DistributedDataParallel arranges its buckets when the second one begins."""
        self.accumulate = configuration.accumulate or case.accumulate
        """Forward and backward passes of a step, unless it is the case's own."""
        self._passes = self.accumulate
        self._with_graphs = False
        """True if backward is gradients that have a graph themselves, as those of `torch.func` have."""
        self._check_options(step)
        self.optimizer = self._chosen_optimizer()
        """The optimizer, or whatever a step of the case's own is given in its place."""
        self.optimizers = _optimizers_in(self.optimizer)
        self._steps_in_backward = step == "backward" and bool(self.optimizers)
        if self._steps_in_backward:
            step_in_backward(self.optimizers[0])
        # Half precision loses the first gradients unless the loss is scaled up.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=configuration.precision == "fp16")
        self._without_gradients = _without_gradients(self.model)
        if configuration.compile is not None and not hasattr(self.model, "_orig_mod"):  # which torch.compile has made already
            _compile(self.model)

    def note(self, text: str) -> None:
        """Add a note for readers of its figures."""
        self._notes.append(text)

    def remarks(self) -> list[str]:
        """Remarks on the phases of a step that has several passes, for readers of its figures."""
        if self._passes == 1:
            return []
        own = f"a step calls backward {self._passes} times"
        adds = f"a step adds up the gradients of {self._passes} passes, each with its loss divided by {self._passes}"
        phases = (
            "forward, and what it retains, are the first pass's, and later passes belong to backward until an optimizer steps"
        )
        return [f"{adds if self.case.train is None else own}: {phases}"]

    def notes(self) -> list[str]:
        """Notes for readers of its figures."""
        return [*self._notes, *self.remarks()]

    def is_plain(self) -> bool:
        """Return whether a step is one forward pass, one backward pass and the optimizer's step."""
        return self.case.train is None and self.accumulate == 1

    def forward(self) -> Tensor:
        """The loss of the batch, with its graph: of passes that accumulate gradients, its share in their mean."""
        with autocast(self.device, self.configuration.precision):
            out = self.case.output(training=True)
            if self.case.loss_under_autocast:
                loss = self.case.loss_of(out, self.configuration.model)
        if not self.case.loss_under_autocast:
            loss = self.case.loss_of(out, self.configuration.model)
        if self.accumulate > 1:
            loss = loss / self.accumulate
        return self._scaler.scale(loss)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of all parameters, and take the optimizer's steps if it steps inside backward."""
        loss.backward()

    def optimize(self) -> None:
        """Take a step of the optimizer and free the gradients, unless backward has done so."""
        if self._steps_in_backward:
            return
        if isinstance(self.optimizer, torch.optim.Optimizer):
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.model.zero_grad(set_to_none=True)
        for tensor in self.given:
            tensor.grad = None  # of an input that needs one

    def train_step(self, observer: StepObserver = UNOBSERVED) -> None:
        """Run forward, backward and optimizer, or the step of the case's own.

        Args:
            observer: observer of its phases.

        Raises:
            ConfigurationError: a step of the case's own never calls backward, or steps an optimizer that is unknown; or the
                step calls none of the layers that should keep less.
        """
        self._step(observer)
        if self._layers_unseen:
            refuse_uncalled(self.model)
            self._layers_unseen = False

    def _step(self, observer: StepObserver) -> None:
        """Run a step, whichever layers it calls."""
        with Phases(observer) as phases:
            if self.case.train is not None:
                self._own_step(self.case.train, phases)
                return
            for _ in range(self.accumulate):
                loss = self.forward()
                phases.begin_backward([loss])
                self.backward(loss)
            phases.begin_optimizer()
            del loss
            self.optimize()

    def _own_step(self, train: TrainStep, phases: Phases) -> None:
        """Run the step of the case's own."""
        with phases.following_calls(self._check_known, with_graphs=self._with_graphs):
            train(self.case.module, self.optimizer, self.case.inputs)
        if not phases.passes:
            # The first step, which nobody observes, shows that there are no others.
            self._with_graphs = phases.parts_of_loss > 0
        self._passes = phases.passes or phases.parts_of_loss
        if not self._passes:
            raise ConfigurationError(
                f"model '{self.configuration.model}': its train function never calls backward",
                "call loss.backward() in it: forward ends there, and what is alive then is what backward needs",
            )

    def _check_known(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer whose state would not be counted."""
        if not any(optimizer is known for known in self.optimizers):
            raise ConfigurationError(
                f"model '{self.configuration.model}': its train function steps an optimizer ({type(optimizer).__name__}) that "
                "is not from its case's optimizer function",
                "make it there, as in optimizer=lambda parameters: torch.optim.SGD(parameters), "
                "and take it from train's second argument",
            )

    def _check_options(self, step: str) -> None:
        """Refuse options that this case leaves no place for.

        Raises:
            ConfigurationError: one of them excludes another, or has no effect on a step of the case's own.
        """
        check_optimizer_step(step, self.configuration.precision, self.accumulate)
        if self.case.train is not None:
            _check_own_step(self.configuration)
        _check_scaling(self.configuration, self.model)

    def _chosen_optimizer(self) -> Any:
        """The optimizer that the configuration names, or else the case's own; None if there is none."""
        parameters = trainable(self.model, self.configuration.model)
        named = self.configuration.optimizer
        factory = OPTIMIZERS[named] if named else self.case.optimizer
        return None if factory is None else self._made_optimizer(factory, parameters)

    def _made_optimizer(self, factory: OptimizerFactory, parameters: list[nn.Parameter]) -> Any:
        """The optimizer of these parameters.

        Raises:
            ConfigurationError: the function raised, made none, or one of other parameters.
        """
        name = self.configuration.model
        try:
            made = factory(parameters)
        except CapsbenchError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"model '{name}': its optimizer function raised {error_line(error)}",
                "it is called with a list of all parameters that need gradients, and returns a torch.optim.Optimizer",
            ) from error
        found = _optimizers_in(made)
        if not found or (self.case.train is None and not isinstance(made, torch.optim.Optimizer)):
            raise ConfigurationError(
                f"model '{name}': its optimizer function returned {described(made)}",
                "it must return a torch.optim.Optimizer: optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
            )
        if self.case.train is None and _needs_closure(made):
            raise ConfigurationError(
                f"model '{name}': its optimizer, {type(made).__name__}, calls forward and backward itself",
                "give the case a train function that ends with optimizer.step(closure)",
            )
        own = {id(parameter) for parameter in self.model.parameters()}
        if not all(id(one) in own for optimizer in found for group in optimizer.param_groups for one in group["params"]):
            raise ConfigurationError(
                f"the optimizer of model '{name}' has parameters that are not parameters of the network",
                "make it of the network's parameters as they are then, such as those that a case's optimizer function is given",
            )
        return made

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep the model in evaluation mode; changing modes takes time with depth, which is no part of inference."""
        evaluated = [module for module in self.model.modules() if not module.training]
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            for module in evaluated:
                module.training = False
            if self.configuration.parallel == "fsdp":
                reshard(self.model)

    def inference(self) -> Any:
        """Run a forward pass under inference mode (TorchScript: without gradients), without labels, and return its output.

        Raises:
            ConfigurationError: the module does not take what a step of the case's own is given.
        """
        with self._without_gradients(), autocast(self.device, self.configuration.precision):
            try:
                return self.case.output(training=False)
            except (TypeError, NotImplementedError) as error:
                if self.case.train is None or self.case.inference is not None:
                    raise
                raise ConfigurationError(
                    f"model '{self.configuration.model}': its module cannot be called for inference with the inputs of its train "
                    f"function: {error_line(error)}",
                    "give the case inference=…, the inputs of its module alone, and the module a forward pass",
                ) from error


def case_on_device(configuration: Configuration, data_directory: Path | None = None) -> tuple[Case, str | None]:
    """The case of a configuration on its device, and the source of a classifier's images.

    Raises:
        ConfigurationError: the configuration makes no network, or the batch is larger than the data.
    """
    device = torch.device(configuration.device)
    if configuration.dataset == OWN_INPUTS:
        return build_case(configuration, device).to(device), None
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
    return classifier_case(configuration, build_model(configuration).to(device), batch), source


def _lists_that_keep_less(configuration: Configuration, model: nn.Module) -> list[str]:
    """A note on the layers that a memory strategy applies to, if there are any."""
    lists = [f"{count} of '{name}'" for name, count in lists_kept_less(model).items()]
    return [f"memory '{configuration.memory}' is that of the layers {', '.join(lists)}"] if lists else []


def _in_a_group(configuration: Configuration, case: Case, device: torch.device) -> Case:
    """The case of one of several processes that train together, if the configuration asks for several."""
    if configuration.parallel is None:
        return case
    called = distributed(
        case.module,
        name=configuration.model,
        parallel=configuration.parallel,
        world_size=configuration.world_size or 1,
        kind=device.type,
    )
    return replace(case, module=called)


def _without_gradients(model: nn.Module) -> Callable[[], AbstractContextManager[object]]:
    """The mode of an inference step."""
    # TorchScript that was compiled while there were gradients would save tensors for backward under inference mode, too.
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return torch.no_grad if scripted else torch.inference_mode


def _optimizers_in(made: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in tuples, lists and dictionaries, and those that they are made of, each once."""
    found: dict[int, torch.optim.Optimizer] = {}
    left = tree_leaves(made)
    while left:
        one = left.pop(0)
        if isinstance(one, torch.optim.Optimizer) and id(one) not in found:
            found[id(one)] = one
            left += vars(one).values()
    return list(found.values())


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of an optimizer cannot be taken without a function that computes loss and gradients."""
    try:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
    except (TypeError, ValueError):  # a function of C
        return False
    return closure is not None and closure.default is closure.empty


def _check_scaling(configuration: Configuration, model: nn.Module) -> None:
    """Refuse to scale the loss of parameters whose gradients torch does not scale back.

    Raises:
        ConfigurationError: precision is fp16, and so are parameters.
    """
    if configuration.precision == "fp16" and any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ConfigurationError(
            f"`precision` fp16 scales the loss, but model '{configuration.model}' has parameters of float16",
            "choose `precision` fp32, which leaves a module in its own precision, or keep its parameters in float32",
        )


def _check_own_step(configuration: Configuration) -> None:
    """Refuse options that a step of a case's own leaves no place for.

    Raises:
        ConfigurationError: an option would have no effect on it.
    """
    given = {
        "optimizer_step": configuration.optimizer_step,
        "accumulate": configuration.accumulate,
        "precision": None if configuration.precision == "fp32" else configuration.precision,
    }
    for option, value in given.items():
        if value is not None:
            raise ConfigurationError(
                f"`{option}` {value} has no effect on model '{configuration.model}', whose case has a train function of its own",
                f"leave `{option}` out, and let the train function do it",
            )


def without_effect(configuration: Configuration) -> list[str]:
    """Notes on options of a configuration that have no effect on its device."""
    if named_lists(configuration.memory or "")[0] == "offload" and configuration.device_kind() == "cpu":
        return ["memory 'offload' has no effect on a CPU, which is 'stored' there: the tensors are in that memory already"]
    return []


def _compile(model: nn.Module) -> None:
    """Compile a network in place. `Module.compile` leaves modules of torch's own classes as they are, up to torch 2.11."""

    def called(*args: Any, **named: Any) -> Any:
        return model._call_impl(*args, **named)

    if type(model).__module__.startswith("torch."):
        model._compiled_call_impl = torch.compile(called)
    else:
        model.compile()


def trainable(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that an optimizer gets.

    Raises:
        ConfigurationError: there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigurationError(
            f"model '{name}' has no parameters to train", "use a network with a parameter that requires a gradient"
        )
    return parameters


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to a precision (`PRECISIONS`), without effect at fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


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


def seed_everything(seed: int = SEED) -> None:
    """Seed torch, Python and numpy, so that every process draws the same numbers."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def check_optimizer_step(step: str, precision: str, accumulate: int | None = None) -> None:
    """Refuse an unknown time of the optimizer's step, and one that precision or accumulation rule out.

    Raises:
        ConfigurationError: it is none of `OPTIMIZER_STEPS`, or `backward` at fp16 or after several passes.
    """
    if step not in OPTIMIZER_STEPS:
        raise unknown_name("`optimizer_step`", step, OPTIMIZER_STEPS)
    if step == "backward" and precision == "fp16":
        raise ConfigurationError(
            "`optimizer_step` backward is not possible with `precision` fp16: its scaler needs all gradients before the step",
            "choose `precision` fp32 or bf16, or `optimizer_step` after",
        )
    if step == "backward" and (accumulate or 1) > 1:
        raise ConfigurationError(
            f"`optimizer_step` backward is not possible with `accumulate` {accumulate}: it frees the gradients that would be "
            "added up",
            "give `accumulate` 1, or `optimizer_step` after",
        )


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

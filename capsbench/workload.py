"""One training step and one inference step of a configuration, as they are measured."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capsbench.cases.case import Case, TrainStep
from capsbench.cases.configured import SEED, case_on_device
from capsbench.cases.foreign import keeping_threads
from capsbench.cases.step_optimizer import check_optimizer_step, chosen_optimizer, optimizers_in
from capsbench.errors import ConfigurationError, error_line
from capsbench.options import Configuration
from capsbench.parallel import distributed, reshard
from capsbench.phases import UNOBSERVED, Phases, StepObserver
from capsbench.reversible import lists_kept_less, named_lists, refuse_uncalled
from capsbench.stepping import step_in_backward

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types to which autocast casts."""


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
        self.first_steps = 2 if configuration.parallel == "ddp" or _is_scripted(self.model) else 1
        """Steps after which all others are alike.

        DistributedDataParallel arranges its buckets when the second one begins, and TorchScript compiles again in it.
        """
        self.accumulate = configuration.accumulate or case.accumulate
        """Forward and backward passes of a step, unless it is the case's own."""
        self._passes = self.accumulate
        self._with_graphs = False
        """True if backward is gradients that have a graph themselves, as those of `torch.func` have."""
        self._check_options(step)
        self.optimizer = chosen_optimizer(configuration, case, self.model)
        """The optimizer, or whatever a step of the case's own is given in its place."""
        self.optimizers = optimizers_in(self.optimizer)
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


def _is_scripted(model: nn.Module) -> bool:
    """Return whether a network is TorchScript in part, or may call functions that are."""
    compiled: Any = torch.jit._state._python_cu
    functions = compiled.get_functions()
    return bool(functions) or any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def _without_gradients(model: nn.Module) -> Callable[[], AbstractContextManager[object]]:
    """The mode of an inference step."""
    # TorchScript that was compiled while there were gradients would save tensors for backward under inference mode, too.
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return torch.no_grad if scripted else torch.inference_mode


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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to a precision (`PRECISIONS`), without effect at fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def seed_everything(seed: int = SEED) -> None:
    """Seed torch, Python and numpy, so that every process draws the same numbers."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)

"""Parts of torch that behave differently while a step is followed on tensors without values."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import wraps
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute, and restore it on leaving."""
    own = name in vars(owner)
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


@contextmanager
def calls_noted(names: Iterable[str], note: Callable[[str], None]) -> Iterator[None]:
    """Pass the names of torch's functions to `note` when these are called, as functions or as methods of a tensor."""
    with ExitStack() as entered:
        for name in names:
            for owner in (torch, Tensor):
                entered.enter_context(replaced(owner, name, _noted(getattr(owner, name), name, note)))
        yield


def _noted(function: Callable[..., Any], name: str, note: Callable[[str], None]) -> Callable[..., Any]:
    @wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        note(name)
        return function(*args, **kwargs)

    return noted


def _shown_state() -> Tensor:
    """The random state, which is shown to the function that `random_states` has left in `torch.random`."""
    import torch

    state: Tensor = torch.default_generator.get_state()
    vars(torch.random)["shown_to"](state)
    return state


@contextmanager
def random_states(follow: Callable[[Tensor], None]) -> Iterator[None]:
    """Show `follow` the random states that are taken, which are real tensors that no operator makes."""
    # The code is replaced and not the function, which a user may know by another name. Operators must be given a real generator.
    function: Any = torch.random.get_rng_state
    before, vars(torch.random)["shown_to"] = function.__code__, follow
    function.__code__ = _shown_state.__code__
    try:
        yield
    finally:
        function.__code__ = before
        del vars(torch.random)["shown_to"]


def whole_inputs() -> AbstractContextManager[None]:
    """Hold the input of an LSTM until all of its layers are done, as its CPU kernel does; torch's form on shapes lets it go."""
    real: Any = torch._VF.lstm

    def lstm(*args: Any) -> Any:
        *_, batch_first = args
        packed = isinstance(args[1], Tensor)  # whose last argument is another one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its remarks are on speed, and a measured step makes them too
            # With gradients it is kept for backward.
            if packed or not (torch.is_inference_mode_enabled() and batch_first is True):
                return real(*args)
            held = args[0].transpose(0, 1).contiguous()
            out, *states = real(held, *args[1:-1], False)
            return out.transpose(0, 1), *states

    return replaced(torch._VF, "lstm", lstm)


def added_biases() -> AbstractContextManager[None]:
    """Let a linear layer add its bias in place to the product of a matrix that is not contiguous, as it does with values."""
    return replaced(torch.nn.functional, "linear", _linear)


_real_linear: Any = torch.nn.functional.linear


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    out: Tensor | None = linear_in_place(input, weight, bias)
    return _real_linear(input, weight, bias) if out is None else out


def linear_in_place(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The output of a linear layer that adds its bias in place; None if it makes the output in one operator."""
    flat = values.dim() < _DIMENSIONS_OF_SCORES or values.is_contiguous()
    if bias is None or flat or torch.is_autocast_enabled(values.device.type):
        return None
    return torch.matmul(values, weight.t()).add_(bias)


# A network that is compiled by TorchScript meanwhile has torch's own operator.
_builtins: Any = importlib.import_module("torch.jit._builtins")
_builtins._register_builtin(_linear, "aten::linear")


def lengths_as_numbers() -> AbstractContextManager[None]:
    """Give the CTC loss the lengths of sequences as numbers, which it makes of tensors unless these have no values."""
    return replaced(torch, "ctc_loss", _ctc_loss)


def _ctc_loss(
    scores: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, blank: int = 0, reduction: int = 0, zero: bool = False
) -> Tensor:
    """The loss by the operators that torch calls on a CPU, and on CUDA without cuDNN."""
    of_scores, of_targets = ([int(length) for length in one] for one in (lengths, target_lengths))
    batch = scores if scores.dim() == _DIMENSIONS_OF_SCORES else scores.unsqueeze(1)
    given = targets.to(batch.device, torch.int64)
    losses: Tensor = torch._ctc_loss(batch, given, of_scores, of_targets, blank, zero)[0]
    if zero:
        losses = torch.where(losses == float("inf"), torch.zeros((), dtype=losses.dtype, device=losses.device), losses)
    if reduction == _MEAN:
        return (losses / torch.tensor(of_targets, dtype=losses.dtype, device=losses.device).clamp_min(1)).mean()
    if reduction == _SUM:
        return losses.sum()
    return losses if batch is scores else losses.squeeze(0)


_DIMENSIONS_OF_SCORES = 3
_MEAN, _SUM = 1, 2
"""Numbers that torch gives reductions."""


@contextmanager
def without_its_log() -> Iterator[None]:
    """Keep torch from printing the errors of operators on shapes, which are raised as well."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(_is_no_failure)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("failed while attempting to run meta")


def unseen() -> AbstractContextManager[None]:
    """Hide from networks that tensors have no values: some ask, and take another path where they have none."""
    return replaced(torch._subclasses, "FakeTensor", _NoTensor)


class _NoTensor:
    """The class of no tensor."""


def arrays(values: Callable[[Tensor], NDArray[Any]]) -> AbstractContextManager[None]:
    """Give tensors without values as the arrays that `values` returns, which no longer share memory with them."""

    def numpy(tensor: Tensor, *, force: bool = False) -> NDArray[Any]:
        if not force and tensor.device.type != "cpu":
            raise TypeError(f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() first")
        if not force and tensor.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return values(tensor)

    return replaced(FakeTensor, "numpy", numpy)


def counted_copies() -> AbstractContextManager[None]:
    """Copy storages, as a deep copy of a buffer does, in memory of the allocator of tensors: torch itself goes around it."""
    return replaced(torch.UntypedStorage, "clone", _copied_storage)


_real_clone: Any = torch.UntypedStorage.clone


def _copied_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type != "cpu":
        copied: torch.UntypedStorage = _real_clone(storage)
        return copied
    memory = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu")
    return memory.untyped_storage().copy_(storage)


def deep_copies() -> AbstractContextManager[None]:
    """Copy tensors by operators, which are followed; torch copies the storages of tensors without values by other means."""
    return replaced(FakeTensor, "__deepcopy__", _deep_copy)


def _deep_copy(tensor: Tensor, memo: dict[Any, Any]) -> Any:
    """Return a copy with the layout of a tensor; copies of tensors that share memory share theirs."""
    if id(tensor) in memo:
        return memo[id(tensor)]
    if not tensor.is_leaf:
        raise RuntimeError("only tensors that are leaves of the graph can be deep copied")
    storage = tensor.untyped_storage()
    key = (storage._cdata, tensor.dtype)
    with torch.no_grad():
        if key not in memo:
            memo[key] = tensor.detach().as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0).clone()
        copied = memo[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).detach()
    memo[id(tensor)] = copied.requires_grad_(tensor.requires_grad)
    for name, value in vars(tensor).items():
        if name not in vars(copied):  # the mark of a parameter, and attributes that its user set
            setattr(copied, name, deepcopy(value, memo))
    if tensor.grad is not None:
        copied.grad = deepcopy(tensor.grad, memo)
    return copied


def initial_values() -> AbstractContextManager[None]:
    """Draw initial weights without reading them: torch redraws some, which changes nothing here."""

    def drawn(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        with torch.no_grad():
            return tensor.normal_()

    return replaced(torch.nn.init, "_no_grad_trunc_normal_", drawn)


def lazy_parameters(model: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Put new tensors in the place of lazy parameters when these are made: memory without values cannot be put into them."""

    def made(lazy: Any, shape: Any, _device: Any = None, dtype: torch.dtype | None = None) -> None:
        tensor = torch.empty(shape, dtype=dtype or lazy.dtype, device=device)
        filled: Any = nn.Parameter(tensor, lazy.requires_grad) if isinstance(lazy, nn.Parameter) else tensor
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, one in held.items():
                    if one is lazy:
                        held[name] = filled

    return replaced(torch.nn.parameter.UninitializedTensorMixin, "materialize", made)  # type: ignore[attr-defined]


def offloading() -> AbstractContextManager[None]:
    """Let `save_on_cpu` take tensors away, and bring new ones back: it would move none where CUDA's appear to be on a CPU."""

    def init(hooks: Any, *_: Any, **__: Any) -> None:
        torch.autograd.graph.saved_tensors_hooks.__init__(
            hooks,
            lambda tensor: (tensor.size(), tensor.stride(), tensor.dtype),
            lambda saved: torch.empty_strided(saved[0], saved[1], dtype=saved[2]),
        )

    return replaced(torch.autograd.graph.save_on_cpu, "__init__", init)

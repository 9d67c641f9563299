"""Twins of live objects: a step is followed on them, and whatever it changes, the originals stay as they are.

A twin has the structure of its original: modules inside modules, tied parameters, hooks, and functions with all that they
enclose. Its tensors are new and have no values, so that twins of a network of many gigabytes take neither memory nor time.
"""

import copy
import itertools
import random
import sys
import warnings
import weakref
from array import array
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import CellType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from capsbench.cases.fingerprint import names_in
from capsbench.errors import ConfigurationError
from capsbench.tracing.fakes import copy_additions

MakeTensor = Callable[[Tensor, bool], Tensor]
"""A function that makes the twin of a tensor; the second argument is True for parameters and buffers of a module."""

_NEVER_CHANGED = {str, int, float, bool, complex, bytes, type(None), torch.dtype, torch.device}
"""Types of most values that modules hold, asked first because vocabularies are long."""

_COPIES = ("__copy__", "__deepcopy__", "__del__")
"""Methods of classes that say themselves how they are copied, or that free what an object holds when it ends, which the end of
a twin would do too: their objects are shared."""
_PICKLES = ("__getstate__", "__reduce__", "__reduce_ex__")
"""Methods of classes that say how they are pickled. Those of packages may be made of more than their attributes."""

_OF_NUMPY = (np.random.Generator, np.random.RandomState, np.random.BitGenerator)

CACHE = type(lru_cache(repr))
"""Type of functions that keep what they returned."""

TWINNED = (
    Tensor, nn.Module, Optimizer, dict, list, tuple, set, deque, UserDict, UserList, bytearray, array, np.ndarray,
    torch.Generator, random.Random, *_OF_NUMPY, CACHE, SimpleNamespace, itertools.count,
)  # fmt: skip
"""Types of global variables that get twins where a function names them."""

_KNOWN = frozenset({"torch", "numpy", "capsbench", *sys.stdlib_module_names})
"""Packages whose code keeps nothing of a network."""
_INSTALLED = {"site-packages", "dist-packages"}

_COPIED_BYTES = 2**24
"""Largest array that cannot be written and is copied all the same."""

_FILLED = ((list, list.extend), (set, set.update), (deque, deque.extend))
"""Types of containers that change, with the method that fills one, which a subclass may have replaced."""


class Twins:
    """Twins of objects, made on demand; two references to one object become two references to one twin.

    Objects that hold no tensors and cannot change in a step (numbers, classes, files, locks) are their own twins, and so are
    those of TorchScript, whose tensors live outside Python (`scripts`).

    Args:
        make: makes the twin of a tensor.
        with_globals: give functions twins of the global variables that they name; otherwise these are replaced where they are.
    """

    def __init__(self, make: MakeTensor, *, with_globals: bool = True) -> None:
        self._make = make
        self._with_globals = with_globals
        self._made: dict[int, Any] = {}
        self._copies: dict[int, Any] = {}
        """Copies of NumPy's generators, and of what they share."""
        self._originals: list[Any] = []
        """Everything that has a twin, so that no other object gets its number."""
        self.scripts: list[torch.jit.ScriptModule] = []
        """Modules of TorchScript that were found, which are shared."""
        self.code: dict[int, FunctionType | type] = {}
        """Functions, and classes of objects, that were found."""
        self._makers: list[tuple[Any, Callable[[Any], Any]]] = [
            (Tensor, self._tensor),
            (nn.Module, self._module),
            (Optimizer, self._optimizer),
            (dict, self._dictionary),
            ((list, set, deque), self._filled),
            ((tuple, frozenset), self._constant),
            (FunctionType, self._function),
            (MethodType, self._method),
            (CACHE, self._cache),
            (partial, lambda call: partial(self.of(call.func), *map(self.of, call.args), **self.of(call.keywords))),
            (weakref.ref, self._reference),
            (np.ndarray, self._array),
            ((bytearray, array), lambda value: self.give(value, copy.copy(value))),
            (torch.Generator, lambda generator: self.give(generator, generator.clone_state())),
            (random.Random, self._random),
            (SimpleNamespace, lambda held: self._with_attributes(self.give(held, SimpleNamespace.__new__(type(held))), held)),
            (itertools.count, self._counter),
            (_OF_NUMPY, lambda generator: self.give(generator, copy.deepcopy(generator, self._copies))),
        ]

    def give(self, original: Any, twin: Any) -> Any:
        """Let an object have this twin, and return the twin."""
        self._originals.append(original)
        self._made[id(original)] = twin
        return twin

    def has(self, value: Any) -> bool:
        """Return whether an object has a twin already."""
        return id(value) in self._made

    def of(self, value: Any) -> Any:
        """Return the twin of an object, which may be the object itself."""
        if type(value) in _NEVER_CHANGED:
            return value
        if id(value) in self._made:
            return self._made[id(value)]
        self.code.setdefault(id(type(value)), type(value))
        for kinds, make in self._makers:
            if isinstance(value, kinds):
                return make(value)
        return self._object(value)

    def _tensor(self, tensor: Tensor, *, registered: bool = False) -> Tensor:
        if id(tensor) in self._made:
            return self._made[id(tensor)]
        twin = self.give(tensor, self._make(tensor, registered))
        if twin is tensor:
            return tensor
        copy_additions(tensor, twin, self.of)
        return twin

    def _module(self, module: nn.Module) -> nn.Module:
        if isinstance(module, DistributedDataParallel | nn.DataParallel):
            raise ConfigurationError(
                f"the network is wrapped in {type(module).__name__}, whose processes a trace does not have",
                "give the network inside, `model.module`",
            )
        if isinstance(module, torch.jit.ScriptModule):
            self.scripts.append(module)
            return self.give(module, module)
        inner = module._modules.get("_orig_mod")
        if inner is not None:  # a compiled network, whose twin is compiled where it is followed
            return self.give(module, torch.compile(self.of(inner)))
        twin = self.give(module, object.__new__(type(module)))
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None:
                    self._tensor(tensor, registered=True)
        for name, value in vars(module).items():
            again = name == "_compiled_call_impl" and value is not None
            vars(twin)[name] = torch.compile(twin._call_impl) if again else self.of(value)
        return twin

    def _optimizer(self, optimizer: Optimizer) -> Optimizer:
        twin = self.give(optimizer, object.__new__(type(optimizer)))
        for group in optimizer.param_groups:
            if group.get("fused") or group.get("capturable"):  # even the number of its steps is on the device
                for parameter in group["params"]:
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, Tensor):
                            self._tensor(value, registered=True)
        vars(twin).update({name: self.of(value) for name, value in vars(optimizer).items()})
        return twin

    def _dictionary(self, value: dict[Any, Any]) -> dict[Any, Any]:
        twin = self.give(value, type(value).__new__(type(value)))
        if isinstance(value, defaultdict):
            twin.default_factory = self.of(value.default_factory)
        # A subclass may refuse changes.
        put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
        for key, one in list(value.items()):
            put(twin, self.of(key), self.of(one))
        return self._with_attributes(twin, value)

    def _filled(self, value: Any) -> Any:
        base, fill = next((base, fill) for base, fill in _FILLED if isinstance(value, base))
        twin = self.give(value, base.__new__(type(value)))
        if isinstance(value, deque):
            deque.__init__(twin, (), value.maxlen)
        fill(twin, [self.of(one) for one in base.__iter__(value)])
        return self._with_attributes(twin, value)

    def _constant(self, value: Any) -> Any:
        if isinstance(value, PackedSequence):
            self.give(value.batch_sizes, value.batch_sizes)  # torch reads them, and nothing changes them
        parts = [self.of(one) for one in value]
        if all(one is other for one, other in zip(value, parts, strict=True)) and not hasattr(value, "__dict__"):
            return self.give(value, value)
        if type(value) in (tuple, frozenset):
            return self.give(value, type(value)(parts))
        if hasattr(value, "_fields"):
            return self.give(value, type(value)(*parts))
        base = tuple if isinstance(value, tuple) else frozenset
        try:
            return self._with_attributes(self.give(value, base.__new__(type(value), parts)), value)
        except TypeError:  # one of C, such as a size
            return self.give(value, value)

    def _array(self, value: Any) -> Any:
        # A large one that cannot be written may be a file that does not fit the memory; its view cannot be written either.
        twin = value.copy(order="K") if value.flags.writeable or value.nbytes <= _COPIED_BYTES else value.view()
        twin.flags.writeable = value.flags.writeable
        return self.give(value, twin)

    def _random(self, generator: random.Random) -> random.Random:
        if isinstance(generator, random.SystemRandom):  # it has no state
            return generator
        twin = self.give(generator, random.Random.__new__(type(generator)))
        self._with_attributes(twin, generator)
        random.Random.setstate(twin, random.Random.getstate(generator))
        return twin

    def _with_attributes(self, twin: Any, value: Any) -> Any:
        """The twin of an object, with twins of its attributes, those in slots included."""
        if hasattr(value, "__dict__"):
            vars(twin).update({name: self.of(one) for name, one in vars(value).items()})
        for slot in _slots(type(value)):
            try:
                held = slot.__get__(value)
            except AttributeError:  # empty so far
                continue
            slot.__set__(twin, self.of(held))
        return twin

    def _method(self, method: MethodType) -> MethodType:
        if isinstance(method.__func__, FunctionType):
            self.code.setdefault(id(method.__func__), method.__func__)
        return MethodType(method.__func__, self.of(method.__self__))

    def _cache(self, function: Any) -> Any:
        """A function that keeps what it returned, with nothing kept so far."""
        twin = self.give(function, lru_cache(**function.cache_parameters())(self.of(function.__wrapped__)))
        vars(twin).update({name: self.of(value) for name, value in vars(function).items() if name != "__wrapped__"})
        return twin

    def _counter(self, counter: "itertools.count[Any]") -> "itertools.count[Any]":
        """A counter at the same number; the counter itself where Python cannot copy one, from 3.14 on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                return self.give(counter, copy.copy(counter))
            except TypeError:
                return counter

    def _function(self, function: FunctionType) -> Any:
        self.code.setdefault(id(function), function)
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None and not getattr(function, "_torchdynamo_disable", False):
            return self.give(function, torch.compile(self.of(compiled)))
        self.give(function, function)  # for one that encloses itself
        before, cells = function.__closure__ or (), [self._cell(cell) for cell in function.__closure__ or ()]
        named = {name: function.__globals__[name] for name in names_in(function.__code__) & function.__globals__.keys()}
        own = function.__globals__.get("__name__", "").partition(".")[0] != "torch"  # whose tables are no user's
        own = own and self._with_globals
        twins = {name: self.of(value) for name, value in named.items() if own and isinstance(value, TWINNED)}
        outside = {name: twin for name, twin in twins.items() if twin is not named[name]}
        defaults = tuple(map(self.of, function.__defaults__ or ()))
        by_name = {name: self.of(value) for name, value in (function.__kwdefaults__ or {}).items()}
        pairs = [
            *zip(before, cells, strict=True),
            *zip(function.__defaults__ or (), defaults, strict=True),
            *((one, by_name[name]) for name, one in (function.__kwdefaults__ or {}).items()),
        ]
        if not outside and all(one is other for one, other in pairs):
            return function
        around = function.__globals__ | outside if outside else function.__globals__
        twin = FunctionType(function.__code__, around, function.__name__, defaults or None, tuple(cells))
        twin.__kwdefaults__, twin.__qualname__, twin.__module__ = by_name or None, function.__qualname__, function.__module__
        self.give(function, twin)
        vars(twin).update({name: self.of(value) for name, value in vars(function).items()})
        return twin

    def _reference(self, reference: "weakref.ref[Any]") -> "weakref.ref[Any]":
        target = reference()
        return reference if target is None else weakref.ref(self.of(target))

    def _cell(self, cell: CellType) -> CellType:
        """The twin of a function's variable; the variable itself if its content is its own twin."""
        if id(cell) in self._made:
            return self._made[id(cell)]
        if cell == CellType():  # empty so far
            return cell
        content = self.of(cell.cell_contents)
        return self.give(cell, cell if content is cell.cell_contents else CellType(content))

    def _object(self, value: Any) -> Any:
        kind = type(value)
        holds = hasattr(value, "__dict__") or any(_slots(kind))
        plain = holds and not isinstance(value, type) and kind.__module__.partition(".")[0] != "torch"
        methods = _COPIES if origin_of(kind.__module__) == "user" else (*_COPIES, *_PICKLES)
        custom = any(getattr(kind, name, None) is not getattr(object, name, None) for name in methods)
        if (custom or not plain) and not isinstance(value, RemovableHandle | UserDict | UserList):
            return value
        try:
            twin = object.__new__(kind)
        except TypeError:  # it is made of more than its attributes
            return value
        return self._with_attributes(self.give(value, twin), value)


def origin_of(module: str) -> Literal["known", "installed", "user"]:
    """The origin of a module: Python, torch, NumPy or this package, another installed package, or a user's own code."""
    if module.partition(".")[0] in _KNOWN:
        return "known"
    file = getattr(sys.modules.get(module), "__file__", None)
    return "installed" if file is not None and not _INSTALLED.isdisjoint(Path(file).parts) else "user"


def _slots(kind: type) -> Iterator[MemberDescriptorType]:
    """Attributes that the classes of Python among a class and its bases keep in slots."""
    for one in kind.__mro__:
        if "__slots__" in vars(one):
            yield from (held for held in vars(one).values() if isinstance(held, MemberDescriptorType))


@contextmanager
def untouched(model: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore everything of a live network that a step on its twin could reach: gradients, TorchScript, random states.

    Args:
        model: the network.
        tensors: its inputs.
    """
    leaves = [*(one for one in model.parameters() if not is_lazy(one)), *tensors]
    gradients = [tensor.grad for tensor in leaves]
    scripts = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    scripted: list[tuple[Any, dict[str, Any]]] = [
        (held, dict(held.items())) for module in scripts for held in (module._parameters, module._buffers)
    ]
    modes = [(module, module.training) for module in scripts]
    python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        # TorchScript would keep what it learns of the twins' devices.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        for tensor, gradient in zip(leaves, gradients, strict=True):
            if tensor.grad is not gradient:
                tensor.grad = gradient
        for held, values in scripted:
            for name, value in values.items():
                held[name] = value
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)

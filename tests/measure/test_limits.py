"""Capacity: exact in bytes of tensors, or of the whole process where there is no compiler; and what counts as having no room."""

import gc
import signal

import pytest
import torch

from capsbench.measure.cell import run_pass
from capsbench.measure.limits import died_of_limit, is_out_of_memory, limit_cpu
from capsbench.measure.messages import Request
from capsbench.system import native
from capsbench.tracing import counting
from helpers.forked import in_fork, shared_server
from helpers.made import MIB, make_configuration

PATIENCE = 300.0
PASSES = pytest.mark.parametrize("what", ["memory", "time"])

needs_allocator = pytest.mark.skipif(counting.installed() is None, reason=f"no allocator: {counting.allocator_library().reason}")


def tensor(nbytes):
    return torch.empty(nbytes, dtype=torch.uint8)


@pytest.fixture
def limited():
    """A megabyte more than there is, until the test is over."""
    limit_cpu(10**6)
    yield 10**6
    counting.limit(None)


@pytest.fixture
def no_compiler(monkeypatch):
    """The limit holds for this process too, which has to know what its workers could have."""
    shared_server()  # it would keep for its life what it finds without a compiler
    monkeypatch.setenv(native.DISABLED, "1")
    native.built.cache_clear()
    counting.allocator_library.cache_clear()
    yield
    native.built.cache_clear()
    counting.allocator_library.cache_clear()


def run(model, what, capacity, **fields):
    configuration = make_configuration(model, batch_size=2, capacity=capacity, **fields)
    return in_fork(run_pass, Request(configuration=configuration, what=what, samples=5, budget_seconds=0), PATIENCE)


@needs_allocator
def test_a_capacity_is_exact_to_the_byte(limited):
    standing = counting.alive()
    rest = tensor(limited - 300)
    small = tensor(300)
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate 1 bytes, and 1000000 of a capacity of 1000000"):
        tensor(1)
    assert tensor(0).numel() == 0
    del small
    with pytest.raises(torch.OutOfMemoryError) as refused:
        tensor(301)
    assert is_out_of_memory(refused.value)
    assert counting.alive() == standing + rest.nbytes
    assert tensor(300).nbytes == 300


@needs_allocator
def test_a_request_that_the_system_refuses_takes_nothing():
    gc.collect()  # what other tests left must not end meanwhile
    standing = counting.alive()
    with pytest.raises(RuntimeError, match="can't allocate memory") as refused:
        tensor(2**60)
    assert is_out_of_memory(refused.value)
    assert counting.alive() == standing


@needs_allocator
def test_a_capacity_counts_from_when_it_is_set(limited):
    first = tensor(limited)
    limit_cpu(500)
    second = tensor(500)
    with pytest.raises(torch.OutOfMemoryError):
        tensor(1)
    counting.limit(None)
    assert tensor(10 * limited).nbytes > first.nbytes + second.nbytes


@needs_allocator
def test_scratch_of_libraries_counts_too(limited):
    convolution, images = torch.nn.Conv2d(16, 16, 3, stride=2), torch.rand(2, 16, 32, 32)
    made = 4 * convolution(images).numel()
    limit_cpu(made)
    with pytest.raises(torch.OutOfMemoryError):
        convolution(images)
    limit_cpu(10 * made)
    convolution(images)


GREEDY = """
import torch
def make(in_shape, num_classes, blocks):
    torch.empty(2 ** 50, dtype=torch.uint8)
"""

# 1,000,000 weights of 4 bytes, their gradients and two moments: 16 MB, and little else.
MODEST = """
import torch
def make(in_shape, num_classes, blocks):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 1250), torch.nn.Linear(1250, num_classes))
"""

CRASHING = """
import ctypes
def make(in_shape, num_classes, blocks):
    ctypes.string_at(0)
"""


@pytest.mark.slow
@PASSES
def test_a_model_that_finds_no_room_is_out_of_memory(own_model, what):
    reply = run(own_model(GREEDY), what, None)
    assert (reply.status, reply.memory) == ("oom", None)
    assert reply.message


@pytest.mark.slow
@PASSES
def test_a_capacity_that_does_not_suffice_is_out_of_memory(what):
    # Weights, gradients and Adam's state alone are more; libraries and threads are not counted, and need not fit.
    reply = run("rescapsnet", what, 100 * MIB)
    assert reply.status == "oom", reply.message
    assert f"capacity of {100 * MIB}" in reply.message


@PASSES
def test_a_capacity_that_suffices_changes_nothing(own_model, what):
    name = own_model(MODEST)
    # Less than the libraries take.
    reply = run(name, what, 20 * MIB)
    assert reply.status == "ok", reply.message
    assert run(name, what, 15 * MIB).status == "oom"


@PASSES
@pytest.mark.parametrize("capacity", [1000, 10 * MIB, 100 * MIB])
def test_without_a_compiler_the_whole_process_is_limited(no_compiler, what, capacity):
    """However a library takes it that there is no memory left, the cell was out of memory."""
    reply = run("rescapsnet", what, capacity)
    assert reply.status == "oom", reply.message
    assert reply.message


def test_a_crash_is_out_of_memory_only_where_libraries_may_have_run_out(own_model, monkeypatch, request):
    name = own_model(CRASHING)
    assert run(name, "memory", 2**40).status == "error"
    request.getfixturevalue("no_compiler")
    assert run(name, "memory", None).status == "error"
    reply = run(name, "memory", 2**40)
    assert reply.status == "oom"
    assert "SIGSEGV" in reply.message
    assert "limited" in reply.message


@pytest.mark.parametrize(
    ("capacity", "device", "status", "last", "expected"),
    [
        (1, "cpu", -signal.SIGSEGV, "", True),
        (1, "cpu", -signal.SIGABRT, "", True),
        (1, "cpu", -signal.SIGBUS, "", True),
        (1, "cpu", 127, "cannot allocate memory for thread-local data: ABORT", True),
        (1, "cpu", -signal.SIGTERM, "", False),
        (1, "cpu", 3, "last words", False),
        (1, "cuda", -signal.SIGSEGV, "", False),
        (None, "cpu", -signal.SIGSEGV, "", False),
    ],
)
def test_which_ends_are_those_of_a_limit(no_compiler, capacity, device, status, last, expected):
    configuration = make_configuration(capacity=capacity, device=device)
    assert died_of_limit(configuration, status, last) == expected


@needs_allocator
def test_no_end_is_that_of_a_limit_on_tensors():
    assert not died_of_limit(make_configuration(capacity=1), -signal.SIGSEGV, "")


@pytest.mark.parametrize(
    ("error", "expected", "limited"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, True),
        (MemoryError(), True, True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"), True, True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"), True, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (RuntimeError("CUDA error: out of memory"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (RuntimeError("could not create a primitive"), False, True),
        (SystemError("error return without exception set"), False, True),
        (ImportError("some.so: failed to map segment from shared object"), False, True),
        (OSError(12, "Cannot allocate memory"), False, True),
        (ImportError("No module named 'some'"), False, False),
        (ValueError("can't allocate memory"), False, False),
        (KeyboardInterrupt(), False, False),
    ],
    ids=repr,
)
def test_what_counts_as_out_of_memory(error, expected, limited):
    assert is_out_of_memory(error) == expected
    assert is_out_of_memory(error, limited=True) == limited

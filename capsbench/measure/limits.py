"""A limit on a CPU's memory, and the signs of a process that has reached it."""

import signal

import torch

from capsbench.measure.processes import data_bytes
from capsbench.records import Configuration
from capsbench.tracing import counting

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS}


def limit_cpu(capacity: int) -> None:
    """Let this process have this many more bytes in tensors; without a compiler, this many bytes of any kind."""
    if counting.installed() is not None:
        counting.limit(capacity)
        return
    # Limit the process's data; memory of libraries and threads is not counted, as on a GPU, where the context is extra.
    import resource

    # Lazy starts must be over by now: threads, and the profiler's own imports.
    torch.ones(2**20).add_(1)
    with torch.profiler.profile(profile_memory=True):
        pass
    limit = data_bytes() + capacity
    # Data, not address space, because the libraries alone map many GiB that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def limits_all_memory(configuration: Configuration) -> bool:
    """Return whether a process has a limit that includes its libraries' memory; few libraries survive running out of it."""
    return configuration.capacity is not None and configuration.device == "cpu" and counting.allocator_library().library is None


def died_of_limit(configuration: Configuration, status: int, last_words: str) -> bool:
    """Return whether a process with this status and last line on standard error is taken to have run out of memory."""
    return limits_all_memory(configuration) and (-status in _CRASHES or "cannot allocate memory" in last_words.lower())


def is_out_of_memory(error: BaseException, *, limited: bool = False) -> bool:
    """Return whether an error means that there was no room; a CPU's comes as a plain RuntimeError.

    Args:
        error: the error that was raised.
        limited: whether libraries run under a limit too. Then oneDNN's failure to make a primitive, a library that cannot be
            loaded, and an error that found no room for itself, mean the same.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ["can't allocate memory", "not enough memory"]
    # CUDA's libraries allocate outside the caching allocator, and have error messages of their own.
    texts += ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"]
    kinds: tuple[type[BaseException], ...] = (RuntimeError, SystemError)
    if limited:
        texts += ["could not create a primitive", "could not create a memory", "without exception set"]
        texts += ["Cannot allocate memory", "failed to map segment from shared object"]
        kinds += (OSError, ImportError)
    return isinstance(error, kinds) and any(text in str(error) for text in texts)

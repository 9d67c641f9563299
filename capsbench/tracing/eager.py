"""Compiled networks under a trace: they run as the plain PyTorch that they were made from.

A compiler decides anew what backward needs, and hides the operators that it runs from anything that follows them. A trace of a
compiled network therefore follows its eager form, and a note says so.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from capsbench.tracing.surroundings import replaced

COMPILED = "the network uses torch.compile, and its eager form is traced: compiled code may keep less, or more"
SCRIPTED = "the network is TorchScript, whose operators a GPU may run as one: it may keep less, or more"


def note_scripted(model: nn.Module, kind: str, notes: dict[str, None]) -> None:
    """Note that TorchScript compiles again on a GPU; on a CPU it keeps what its trace keeps."""
    if kind == "cuda" and any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        notes[SCRIPTED] = None


@contextmanager
def eagerly(notes: dict[str, None]) -> Iterator[None]:
    """Run everything that `torch.compile` has made, or makes inside, as plain PyTorch.

    Args:
        notes: receives `COMPILED` as soon as compiled code is called.
    """
    with ExitStack() as entered:
        real, forced = torch.compile, False

        def force() -> None:
            nonlocal forced
            if not forced:
                forced = True
                entered.enter_context(torch.compiler.set_stance("force_eager"))
                entered.enter_context(_noting(notes))

        def compiled(*args: Any, **kwargs: Any) -> Any:
            made = real(*args, **kwargs)
            force()
            return made

        # The compiler takes a second to import: leave it alone until it is used.
        if "torch._dynamo.eval_frame" in sys.modules:
            force()
        with replaced(torch, "compile", compiled):
            yield


def _noting(notes: dict[str, None]) -> AbstractContextManager[None]:
    """Note every call of a compiled function, which asks its stance what to do."""
    from torch._dynamo import eval_frame

    real: Callable[[Any], Any] = eval_frame._callback_from_stance

    def ask(callback: Any) -> Any:
        if callback not in (None, False):
            notes[COMPILED] = None
        return real(callback)

    return replaced(eval_frame, "_callback_from_stance", ask)

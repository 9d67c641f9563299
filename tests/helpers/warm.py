"""A server of calls apart that has imported what files of tests import, so that its forks import a file of tests in no time."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from capsbench.prediction import apart

_IMPORTS = (
    "numpy", "pandas", "pytest", "torch", "capsbench.estimation", "capsbench.measure.cell", "capsbench.measure.step_timeline",
    "capsbench.measure.turns", "capsbench.prediction.timelines", "capsbench.report", "capsbench.stats.slopes",
    "capsbench.sweep.measuring", "capsbench.sweep.session", "capsbench.sweep.verbs",
)  # fmt: skip

_START = """
import contextlib, importlib, sys
for name in sys.argv[1:]:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
from capsbench.prediction.apart import _serve
_serve()
"""


@contextmanager
def warm_server(*names: str) -> Iterator[None]:
    """Have calls apart answered by forks of such a server.

    Args:
        names: further modules that it imports, where they are installed.
    """

    def started(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command == [sys.executable, "-P", "-m", apart.__name__]
        return subprocess.Popen([sys.executable, "-P", "-c", _START, *_IMPORTS, *names], **options)

    apart.close()
    usual, apart.subprocess = apart.subprocess, SimpleNamespace(Popen=started, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    try:
        yield
    finally:
        apart.close()
        apart.subprocess = usual  # type: ignore[assignment]

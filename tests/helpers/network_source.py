"""Sources of a network whose module does something more: when it is imported, made, or run."""

_SOURCE = """
import os, subprocess, sys
import torch
from torch import nn
{top}
class Net(nn.Sequential):
    def forward(self, x):
        {forward}
        return super().forward(x)

def make(in_shape, classes, blocks):
    {make}
    return Net(nn.Flatten(), nn.Linear(784, 4), *(nn.Linear(4, 4) for _ in range(blocks)), nn.Linear(4, classes))
"""

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("pid", "w").write(str(os.getpid()))
        import time
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("pid") or not open("pid").read():
    pass
"""
"""Statements that leave a process behind in a session of its own, whose number is in the file pid."""


def source(top: str = "", make: str = "pass", forward: str = "pass") -> str:
    """The source of `make(in_shape, classes, blocks)`, with statements at the top of the module, and of both functions."""
    return _SOURCE.format(top=top, make=make, forward=forward)

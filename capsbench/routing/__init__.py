"""The operator: input capsules and weights in, output capsules out. Nothing here knows a network.

Read `reference` first: it is the specification. Each other file is one way to compute the same.
"""

from capsbench.routing.dispatch import algorithms, check_routing, kernels, resolve_kernel, route
from capsbench.routing.squash import length, squash

__all__ = ["algorithms", "check_routing", "kernels", "length", "resolve_kernel", "route", "squash"]

"""The operator: input capsules and weights in, output capsules out. Nothing here knows a network.

Read `reference` first, which is the specification. Each other file is another way to compute it.
"""

from capsbench.routing.dispatch import (
    RouteOptions,
    algorithm_of,
    algorithms,
    check_routing,
    kernels,
    resolve_kernel,
    route,
    route_and_vjp,
    route_keeping,
)
from capsbench.routing.squash import length, squash

__all__ = [
    "RouteOptions",
    "algorithm_of",
    "algorithms",
    "check_routing",
    "kernels",
    "length",
    "resolve_kernel",
    "route",
    "route_and_vjp",
    "route_keeping",
    "squash",
]

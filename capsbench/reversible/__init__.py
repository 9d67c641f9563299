"""Residual stacks that can be run backwards, and the other ways to save their memory. Nothing here knows capsules."""

from capsbench.reversible.drift import DRIFT_BOUND, LIPSCHITZ, DriftWarning, drift_bound, segment_length
from capsbench.reversible.evaluate import is_altered
from capsbench.reversible.members import (
    MEMBER_STRATEGIES,
    check_members_strategy,
    keep_less,
    lists_kept_less,
    longest_lists,
    named_lists,
    refuse_uncalled,
)
from capsbench.reversible.momentum import Gamma, check_gamma, spread
from capsbench.reversible.pair import INVERSES, resolve_inverse, retained_bits
from capsbench.reversible.stack import MomentumStack
from capsbench.reversible.strategies import PLAIN_STRATEGIES, REVERSIBLE_STRATEGIES, STRATEGIES, check_strategy, run_steps

__all__ = [
    "DRIFT_BOUND",
    "INVERSES",
    "LIPSCHITZ",
    "MEMBER_STRATEGIES",
    "PLAIN_STRATEGIES",
    "REVERSIBLE_STRATEGIES",
    "STRATEGIES",
    "DriftWarning",
    "Gamma",
    "MomentumStack",
    "check_gamma",
    "check_members_strategy",
    "check_strategy",
    "drift_bound",
    "is_altered",
    "keep_less",
    "lists_kept_less",
    "longest_lists",
    "named_lists",
    "refuse_uncalled",
    "resolve_inverse",
    "retained_bits",
    "run_steps",
    "segment_length",
    "spread",
]

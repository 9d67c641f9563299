"""Residual stacks that can be run backwards, and the other ways to save their memory. Nothing here knows capsules."""

from capsbench.reversible.momentum import check_gamma
from capsbench.reversible.stack import INVERSES, MomentumStack
from capsbench.reversible.strategies import PLAIN_STRATEGIES, STRATEGIES, check_strategy, run_steps

__all__ = ["INVERSES", "PLAIN_STRATEGIES", "STRATEGIES", "MomentumStack", "check_gamma", "check_strategy", "run_steps"]

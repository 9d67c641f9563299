"""Figures 3 and 4 as matplotlib's figures."""

from capsbench.figures import depth as figures


def figure3(*given, **options):
    return figures.figure3(*given, **options)[0, 0].figure


def figure4(*given, **options):
    return figures.figure4(*given, **options)[0, 0].figure

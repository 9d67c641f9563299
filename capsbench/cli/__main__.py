"""Entry point of `python -m capsbench.cli`."""

from capsbench.cli import main

main()

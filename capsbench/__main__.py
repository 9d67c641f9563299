"""`python -m capsbench`."""

from capsbench.cli import main

main()

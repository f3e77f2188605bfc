"""`python -m pipeline` is the `stackgan` command."""

from pipeline.cli import main

main()

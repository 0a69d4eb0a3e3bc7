"""`python -m hrzs` is `hrzs`."""

from hrzs.cli import main

main()

"""`python -m hrzs.cli`: the same as `hrzs`."""

from hrzs.cli import main

main()

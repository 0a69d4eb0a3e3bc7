"""First on the path of the processes that tests start: open_clip imports transformers if it is there, for most of a second."""

raise ImportError("transformers is hidden from this process (tests/conftest.py)")

"""The two ways a command can end badly; `hrzs.cli` turns them into exit statuses."""


class HrzsError(Exception):
    """It failed while running (exit status 1). The message names the culprit and the remedy."""


class UsageError(HrzsError):
    """The call was wrong (exit status 2). The message names the option, the value and what would work."""

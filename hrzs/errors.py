"""The two ways a command can end badly; `hrzs.cli` turns them into exit statuses. Their messages cut long lists."""

from collections.abc import Sequence


class HrzsError(Exception):
    """It failed while running (exit status 1). The message names the culprit and the remedy."""


class UsageError(HrzsError):
    """The call was wrong (exit status 2). The message names the option, the value and what would work."""


class DataMissingError(UsageError):
    """A dataset that hrzs knows, but whose files are not here or not whole. The message says what to put where."""


class NoReportError(UsageError):
    """A file that no hrzs wrote as a report, unlike one that is broken or too new."""


class ProcessLostError(HrzsError):
    """Another process of the job has ended, or cannot be reached."""


def few(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

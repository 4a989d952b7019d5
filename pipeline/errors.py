"""The named ways a run can fail, each with the exit status that its job returns."""


class RunError(Exception):
    """A failure that a person can act on: one line that says what, where, wanted, got."""

    exit_status = 1


class InputError(RunError):
    """The config, the source, the model or the store cannot be used; nothing has been done yet."""

    exit_status = 2


class IncompleteError(RunError):
    """Work is missing or a limit was passed; what was committed stays and the same command goes on."""

    exit_status = 3


class LeaseHeldError(RunError):
    """Another run writes this table."""

    exit_status = 4


def storage_failed(error: Exception | str, where: str = "") -> IncompleteError:
    """Give the error of a run that storage ended, and not only for a moment."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return IncompleteError(f"{where}storage failed: {said}; see to it, and the same command goes on")

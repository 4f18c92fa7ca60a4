"""Typed errors.  Each names the field at fault, its value and what to do about it."""

from __future__ import annotations


class FoveaError(Exception):
    """An error that a user can act on; printed as one line, never as a traceback.

    Args:
        message: what is wrong, in one sentence without a full stop.
        field: the option, key or file that is at fault, when there is one.
        value: its value as the user gave it.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, field: str | None = None, value: object = None, fix: str | None = None):
        super().__init__(message)
        self.message, self.field, self.value, self.fix = message, field, value, fix

    def __str__(self) -> str:
        where = "" if self.field is None else f"{self.field}: "
        given = "" if self.value is None else f" (got {self.value!r})"
        fix = "" if self.fix is None else f"; {self.fix}"
        return f"{where}{self.message}{given}{fix}"

    def as_dict(self) -> dict[str, object]:
        """Return the error as JSON-ready fields."""
        value = self.value if isinstance(self.value, str | int | float | bool | None) else repr(self.value)
        return {
            "type": type(self).__name__,
            "message": self.message,
            "field": self.field,
            "value": value,
            "fix": self.fix,
        }


class UsageError(FoveaError):
    """Bad usage or bad input: exit code 2."""

    exit_code = 2


class CheckFailed(FoveaError):
    """The command ran, and what it checked did not hold: exit code 1."""

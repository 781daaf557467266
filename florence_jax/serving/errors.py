"""`ServingError`: an HTTP status with one sentence for the caller."""

from __future__ import annotations

import math

from florence_jax.runtime.error_text import is_of_one_input, row_error_text

# nginx's status of a request whose caller went away; nobody receives it, the log has it.
CALLER_GONE = 499


class ServingError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what is wrong, and the remedy.
        retry_after: seconds after which the caller should try again; None where it should not.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status in (408, 413):
            # The rest of the body is not read: the connection cannot be used again.
            headers["Connection"] = "close"
        return headers


def refusal(error: Exception, where: str = "") -> ServingError:
    """The status and message of an error that a request ran into.

    Args:
        error: of any kind.
        where: the beginning of the message, where one call holds several requests.
    """
    if isinstance(error, ServingError):
        return error
    status = 422 if is_of_one_input(error) and isinstance(error, ValueError | OSError) else 500
    return ServingError(status, where + row_error_text(error))

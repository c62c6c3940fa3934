"""Errors of the server, in the form of OpenAI's API."""

from collections.abc import Mapping
from typing import Any

__all__ = ["ApiError", "error_body"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: one line for the client's user.
        code: short name, for programs.
        parameter: the field of the request that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.parameter = status, message, code, parameter
        self.headers = dict(headers or {})


def error_body(error: ApiError) -> dict[str, Any]:
    """Return the JSON of an error."""
    default = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, default)
    return {"error": {"message": error.message, "type": kind, "param": error.parameter, "code": error.code}}

"""Exceptions of a tracking store that cannot be reached, or that refuses a request."""

import socket

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

# The store refuses; it cannot be reached, or cannot be written; its database is damaged.
FAILURES = (MlflowException, requests.RequestException, OSError, SQLAlchemyError)


_REFUSED = (400, 401, 403, 404, 409)


def is_refusal(error: Exception) -> bool:
    """Whether a store has answered, and will not take the same request later either."""
    # MLflow reports some failures of its database as a bad request.
    return (
        isinstance(error, MlflowException)
        and error.get_http_status_code() in _REFUSED
        and not isinstance(error.__cause__, SQLAlchemyError)
    )


def first_line(error: Exception) -> str:
    """Returns the first line of a store's error message; of a lost connection, the reason alone."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    # It is at the end of a line that quotes the exceptions of four libraries.
    if isinstance(root, (ConnectionError, TimeoutError, socket.gaierror)) and root.strerror:
        return root.strerror
    lines = str(error).strip().splitlines()
    # Cut: a proxy may answer with a whole page on one line.
    return lines[0].removesuffix(".")[:300] if lines else type(error).__name__

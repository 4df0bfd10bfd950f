"""Exceptions of a tracking store that cannot be reached, or that refuses a request."""

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

# The store refuses; it cannot be reached, or cannot be written; its database is damaged.
FAILURES = (MlflowException, requests.RequestException, OSError, SQLAlchemyError)


def first_line(error: Exception) -> str:
    """Returns the first line of a store's error message."""
    lines = str(error).strip().splitlines()
    # Cut: a proxy may answer with a whole page on one line.
    return lines[0].removesuffix(".")[:300] if lines else type(error).__name__

"""What a tracking store that is away, or that refuses, raises."""

import requests
from mlflow.exceptions import MlflowException

FAILURES = (MlflowException, requests.RequestException, OSError)


def first_line(error: Exception) -> str:
    """Returns the first line of a store's error message."""
    lines = str(error).strip().splitlines()
    return lines[0].removesuffix(".")[:300] if lines else type(error).__name__

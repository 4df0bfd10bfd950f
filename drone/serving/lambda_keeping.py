"""Keeps served images of the Lambda function in a bucket.

Environment variables:
    DRONE_KEEP         s3://BUCKET/PREFIX for the images; without it none is kept
    DRONE_KEEP_SHARE   share of all images that is kept, 0 to 1; by default 0.05
    DRONE_KEEP_UNSURE  false keeps unsure images only as part of that share
    DRONE_KEEP_NONE    false does the same for "none of these"
    DRONE_KEEP_DAYS    days after which the bucket's rule deletes them, for clients to read; 90
"""

import functools
import os
from typing import Any

from drone.errors import ConfigError
from drone.serving import environment
from drone.serving.keeping import ImmediateKeeper, KeepSettings

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 0.5, 1.0
"""Of each of two requests: an answer waits for them, since Lambda freezes the process after it."""


def create_keeper() -> ImmediateKeeper | None:
    """Returns what keeps images as the environment says; None if it keeps none.

    Raises:
        ConfigError: An environment variable is wrong.
    """
    location = os.environ.get("DRONE_KEEP")
    if not location:
        return None
    settings = KeepSettings(
        keep=location,
        keep_share=environment.number("DRONE_KEEP_SHARE", KeepSettings.keep_share),
        keep_unsure=environment.flag("DRONE_KEEP_UNSURE", KeepSettings.keep_unsure),
        keep_none=environment.flag("DRONE_KEEP_NONE", KeepSettings.keep_none),
        keep_days=environment.whole_number("DRONE_KEEP_DAYS", KeepSettings.keep_days),
    )
    return ImmediateKeeper(settings, Bucket(location))


class Bucket:
    """A folder of a bucket; a `keeping.ImageSink`."""

    def __init__(self, location: str) -> None:
        """Takes the location apart; nothing is sent.

        Raises:
            ConfigError: It is not s3://BUCKET/PREFIX.
        """
        # Part of Lambda's runtime, and slow to import: now, and not in the first request.
        import boto3  # noqa: F401

        self._bucket, _, prefix = location.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        if not location.startswith("s3://") or not self._bucket or not self._prefix:
            raise ConfigError(f"DRONE_KEEP is {location!r}; write s3://BUCKET/PREFIX.")

    @functools.cached_property
    def _client(self) -> Any:
        """S3's client, made at the first use: a snapshot must hold nothing of its credentials."""
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
        )
        return boto3.client("s3", config=config)

    def write(self, path: str, content: bytes) -> None:
        """Writes an object."""
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{path}", Body=content)

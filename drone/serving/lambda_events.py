"""What a Lambda function is handed for an HTTP request, and what it hands back.

Four senders, three shapes: API Gateway's REST API (payload 1.0), its HTTP API and function URLs
(payload 2.0), and a load balancer, whose events look like payload 1.0 without a stage.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from drone.serving.api import Refusal, Request, Response

Event = Mapping[str, Any]

_TEXT = ("text/", "application/json")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def is_http(event: object) -> bool:
    """Whether the event is an HTTP request at all, and not a timer's or a queue's."""
    if not isinstance(event, Mapping) or not isinstance(event.get("requestContext"), Mapping):
        return False
    return "httpMethod" in event or isinstance(event["requestContext"].get("http"), Mapping)


def headers_of(event: Event) -> dict[str, str]:
    """The request's headers, names in lower case; of a repeated one, the last."""
    several = _items(event, "multiValueHeaders")
    found = {name: values[-1] for name, values in several if isinstance(values, list) and values}
    found.update(_items(event, "headers"))
    return {name.lower(): str(value) for name, value in found.items()}


def request_of(event: Event, headers: Mapping[str, str], knows: Callable[[str], bool]) -> Request:
    """The HTTP request that an event describes.

    Args:
        event: of any of the senders.
        headers: what `headers_of` found.
        knows: whether a path is one of the interface's own.

    Raises:
        Refusal: its body is not what it is said to be.
    """
    http = event["requestContext"].get("http", event)
    method = str(http.get("method") or http.get("httpMethod") or "GET").upper()
    paths = list(_paths(event))
    path = next((path for path in paths if knows(path)), paths[0])
    return Request(method, path, headers, _body(event, headers))


def result_of(response: Response, event: object, *, head: bool) -> dict[str, Any]:
    """A response as the sender of the event wants it.

    Args:
        response: what to say.
        event: that is answered.
        head: whether only the headers were asked for.
    """
    body = b"" if head else response.body
    as_text = not body or response.headers.get("Content-Type", "").startswith(_TEXT)
    result: dict[str, Any] = {
        "statusCode": response.status,
        "isBase64Encoded": not as_text,
        "body": body.decode() if as_text else base64.b64encode(body).decode(),
    }
    if _wants_lists(event):
        result["multiValueHeaders"] = {name: [value] for name, value in response.headers.items()}
    else:
        result["headers"] = response.headers
    return result


def _wants_lists(event: object) -> bool:
    """Whether a load balancer is set to headers of many values; it then reads no others."""
    if not isinstance(event, Mapping) or not is_http(event):
        return False
    return "elb" in event["requestContext"] and "multiValueHeaders" in event


def _items(event: Event, name: str) -> list[tuple[str, Any]]:
    # API Gateway's test console sends null for no headers.
    found = event.get(name)
    return list(found.items()) if isinstance(found, Mapping) else []


def _paths(event: Event) -> Iterator[str]:
    """What the request's path may be, the likeliest first.

    A stage (/prod/predict) or a domain's mapping (/drones/predict) may stand before the
    interface's own path; the route that matched does not have them.
    """
    context = event["requestContext"]
    whole = unquote(str(event.get("rawPath") or event.get("path") or "/"))
    stage = f"/{context.get('stage')}/"
    if whole.startswith(stage):
        yield whole.removeprefix(stage[:-1])
    yield whole
    yield str(event.get("routeKey", "")).rpartition(" ")[2]
    yield str(event.get("resource", ""))
    yield f"/{(event.get('pathParameters') or {}).get('proxy', '')}"


def _body(event: Event, headers: Mapping[str, str]) -> bytes:
    text = event.get("body") or ""
    if event.get("isBase64Encoded"):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refusal(400, "bad-body", "The event's body is not valid base64.") from error
    # Handed on as text, a picture is lost beyond repair; better said than "damaged".
    if _REPLACEMENT in text and not headers.get("content-type", "").startswith(_TEXT):
        raise Refusal(
            415,
            "not-binary",
            "The gateway handed the picture on as text. Its binary media types must include "
            "the request's Content-Type; application/octet-stream may be one of them.",
        )
    # JSON may hold half a surrogate pair, which strict UTF-8 refuses.
    return str(text).encode("utf-8", "surrogatepass")

"""Translates between AWS Lambda's HTTP events and our `Request` and `Response`.

Four kinds of sources send three shapes of events: API Gateway REST APIs (payload format 1.0), HTTP
APIs and function URLs (payload format 2.0), and application load balancers, whose events look like
payload format 1.0 without a stage.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlencode

from drone.serving.api import ApiError, Request, Response

Event = Mapping[str, Any]

_TEXT = ("text/", "application/json")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def is_http_event(event: object) -> bool:
    """Whether the event is an HTTP request, and not one of a timer or a queue."""
    if not isinstance(event, Mapping) or not isinstance(event.get("requestContext"), Mapping):
        return False
    return "httpMethod" in event or isinstance(event["requestContext"].get("http"), Mapping)


def parse_headers(event: Event) -> dict[str, str]:
    """Returns the request's headers by lower-case name; of a repeated header, the last value."""
    lists = _items(event, "multiValueHeaders")
    headers = {name: values[-1] for name, values in lists if isinstance(values, list) and values}
    headers.update(_items(event, "headers"))
    return {name.lower(): str(value) for name, value in headers.items()}


def parse_request(
    event: Event, headers: Mapping[str, str], has_route: Callable[[str], bool]
) -> Request:
    """Returns the HTTP request that an event describes.

    Args:
        event: Event of any source for which `is_http_event` holds.
        headers: Headers that `parse_headers` returned.
        has_route: Whether a path is one of the interface's own.

    Raises:
        ApiError: The body is not valid base64, or was corrupted by a conversion to text.
    """
    http = event["requestContext"].get("http", event)
    method = str(http.get("method") or http.get("httpMethod") or "GET").upper()
    paths = list(_candidate_paths(event))
    path = next((path for path in paths if has_route(path)), paths[0])
    return Request(method, path, headers, _decode_body(event, headers), _query(event))


def format_response(response: Response, event: object, *, head: bool) -> dict[str, Any]:
    """Returns a response in the shape that the source of the event expects.

    Args:
        response: Response to send.
        event: Event that it answers.
        head: Whether the request's method is HEAD, so that only headers are sent.
    """
    body = b"" if head else response.body
    is_text = not body or response.headers.get("Content-Type", "").startswith(_TEXT)
    result: dict[str, Any] = {
        "statusCode": response.status,
        "isBase64Encoded": not is_text,
        "body": body.decode() if is_text else base64.b64encode(body).decode(),
    }
    if _uses_multi_value_headers(event):
        result["multiValueHeaders"] = {name: [value] for name, value in response.headers.items()}
    else:
        result["headers"] = response.headers
    return result


def _uses_multi_value_headers(event: object) -> bool:
    """Whether a load balancer has multi-value headers enabled; it then ignores `headers`."""
    if not isinstance(event, Mapping) or not is_http_event(event):
        return False
    return "elb" in event["requestContext"] and "multiValueHeaders" in event


def _items(event: Event, name: str) -> list[tuple[str, Any]]:
    # API Gateway's test console sends null instead of an empty object.
    items = event.get(name)
    return list(items.items()) if isinstance(items, Mapping) else []


def _candidate_paths(event: Event) -> Iterator[str]:
    """Yields what the interface's path may be, likeliest first.

    A stage (/prod/predict) or a domain's base path (/drones/predict) may precede the interface's
    own path; the route that matched contains neither.
    """
    context = event["requestContext"]
    full_path = unquote(str(event.get("rawPath") or event.get("path") or "/"))
    stage = f"/{context.get('stage')}/"
    if full_path.startswith(stage):
        yield full_path.removeprefix(stage[:-1])
    yield full_path
    yield str(event.get("routeKey", "")).rpartition(" ")[2]
    yield str(event.get("resource", ""))
    yield f"/{(event.get('pathParameters') or {}).get('proxy', '')}"


def _query(event: Event) -> str:
    """Returns the query string; payload format 1.0 has its parameters instead."""
    lists = dict(_items(event, "multiValueQueryStringParameters"))
    parameters = {**dict(_items(event, "queryStringParameters")), **lists}
    return str(event.get("rawQueryString") or urlencode(parameters, doseq=True))


def _decode_body(event: Event, headers: Mapping[str, str]) -> bytes:
    text = event.get("body") or ""
    if event.get("isBase64Encoded"):
        try:
            # Events that are made by hand for a test often hold wrapped lines.
            return base64.b64decode(text.encode("ascii").translate(None, b" \r\n"), validate=True)
        except (binascii.Error, ValueError) as error:
            message = "The body of the event is not valid base64."
            raise ApiError(400, "bad-body", message) from error
    # A gateway that passes an image on as text corrupts it irreparably. Naming the cause is more
    # helpful than reporting a damaged image.
    if _REPLACEMENT in text and not headers.get("content-type", "").startswith(_TEXT):
        message = (
            "The gateway passed the image on as text. Add the request's Content-Type to its "
            "binary media types, for example application/octet-stream."
        )
        raise ApiError(415, "not-binary", message)
    # JSON may contain half a surrogate pair, which strict UTF-8 rejects.
    return str(text).encode("utf-8", "surrogatepass")

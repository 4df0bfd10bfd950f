"""HTTP events of all sources as AWS documents them, and helpers to read the results."""

import base64
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
CONTEXT = SimpleNamespace(aws_request_id="11111111-2222-3333-4444-555555555555")


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 90, height: int = 80, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


IMAGE = file_of(noise(), "PNG")


# The sources. A body that is not text arrives as base64.


def encoded(body: bytes, kind: str, always: bool = False) -> dict:
    if not body:
        return {"body": None, "isBase64Encoded": False}
    if kind.startswith(("text/", "application/json")) and not always:
        return {"body": body.decode(), "isBase64Encoded": False}
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def rest(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """API Gateway, REST API, with */* as binary media types and a route of ANY /{proxy+}."""
    sent = {"Host": "abc.execute-api.eu-west-1.amazonaws.com", **headers}
    if kind:
        sent["Content-Type"] = kind
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": sent,
        "multiValueHeaders": {name: [value] for name, value in sent.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/prod{path}",
            "stage": "prod",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": {"sourceIp": "192.0.2.1"},
        },
        **encoded(body, kind, always=True),
    }


def rest_null(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same from the console's test button: null for headers where there are none."""
    event = rest(method, path, kind, body, **headers)
    if not kind and not headers:
        event.update(headers=None, multiValueHeaders=None)
    return event


def mapped(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same behind a custom domain with a base path, which stays in `path`."""
    event = rest(method, path, kind, body, **headers)
    event["path"] = event["requestContext"]["path"] = f"/drones{path}"
    return event


def http_api(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """API Gateway, HTTP API, with the stage in front of the path."""
    sent = {name.lower(): value for name, value in headers.items()}
    if kind:
        sent["content-type"] = kind
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": f"/prod{path}",
        "rawQueryString": "a=1&b=2",
        "headers": {"host": "abc.execute-api.eu-west-1.amazonaws.com", **sent},
        "requestContext": {
            "apiId": "abc",
            "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
            "http": {
                "method": method,
                "path": f"/prod{path}",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "curl",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "prod",
        },
        **encoded(body, kind),
    }
    if not body:
        del event["body"]
    return event


def http_route(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """The same with a route for each path, behind a mapping."""
    event = http_api(method, path, kind, body, **headers)
    event["routeKey"] = event["requestContext"]["routeKey"] = f"{method} {path}"
    event["rawPath"] = event["requestContext"]["http"]["path"] = f"/drones{path}"
    return event


def function_url(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    event = http_api(method, path, kind, body, **headers)
    event["rawPath"] = event["requestContext"]["http"]["path"] = path
    event["requestContext"]["stage"] = "$default"
    return event


def balancer(method: str, path: str, kind: str = "", body: bytes = b"", **headers: str) -> dict:
    """An application load balancer."""
    sent = {name.lower(): value for name, value in headers.items()}
    if kind:
        sent["content-type"] = kind
    arn = "arn:aws:elasticloadbalancing:eu-west-1:0:targetgroup/drone/0"
    event = {
        "requestContext": {"elb": {"targetGroupArn": arn}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {},
        "headers": {"host": "drone.example.org", **sent},
        **encoded(body, kind),
    }
    return {**event, "body": event["body"] or ""}


def balancer_lists(
    method: str, path: str, kind: str = "", body: bytes = b"", **headers: str
) -> dict:
    """The same with multi-value headers, which replace the single-value ones."""
    event = balancer(method, path, kind, body, **headers)
    event["multiValueHeaders"] = {name: [v] for name, v in event.pop("headers").items()}
    return event


SOURCES = (
    rest,
    rest_null,
    mapped,
    http_api,
    http_route,
    function_url,
    balancer,
    balancer_lists,
)
Source = Callable[..., dict]


def content(result: dict) -> Any:
    body = result["body"]
    raw = base64.b64decode(body) if result["isBase64Encoded"] else body.encode()
    return json.loads(raw) if raw else None


def headers_in(result: dict) -> dict[str, str]:
    lists = result.get("multiValueHeaders", {})
    return result.get("headers") or {name: values[-1] for name, values in lists.items()}


def form(image: bytes) -> tuple[str, bytes]:
    head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    return "multipart/form-data; boundary=XX", head + b"\r\n" + image + b"\r\n--XX--\r\n"


def as_json(image: bytes) -> tuple[str, bytes]:
    return "application/json", json.dumps({"image": base64.b64encode(image).decode()}).encode()


ENCODINGS = {
    "bytes": ("application/octet-stream", IMAGE),
    "png": ("image/png", IMAGE),
    "form": form(IMAGE),
    "json": as_json(IMAGE),
}

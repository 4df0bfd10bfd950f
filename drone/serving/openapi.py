"""The description of the HTTP interface, for programs (OpenAPI 3.1) and for people."""

import html
import json
from typing import Any

_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}

_PREDICTION = {
    "type": "object",
    "required": ["label", "index", "probabilities", "confidence", "unsure", "model", "request_id"],
    "properties": {
        "label": {"type": "string", "description": "The most probable class."},
        "index": {"type": "integer", "minimum": 0},
        "probabilities": {"type": "object", "additionalProperties": _PROBABILITY},
        "confidence": _PROBABILITY,
        "drone": {**_PROBABILITY, "type": ["number", "null"]},
        "kind": {"type": ["string", "null"], "enum": ["bird", "drone", None]},
        "unsure": {"type": "boolean", "description": "Too close to call."},
        "model": {"$ref": "#/components/schemas/Named"},
        "request_id": {"type": "string"},
    },
}

_NAMED = {
    "type": "object",
    "required": ["name", "version", "fingerprint"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "fingerprint": {"type": "string", "description": "Of the data set it was trained on."},
    },
}

_MODEL = {
    "type": "object",
    "required": [*_NAMED["required"], "classes", "preprocessing", "limits"],
    "properties": {
        **_NAMED["properties"],  # type: ignore[dict-item]
        "classes": {"type": "array", "items": {"type": "string"}},
        "preprocessing": {"type": "object"},
        "sides_px": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Sides of a model of mixed resolutions, which takes a picture at the "
            "nearest one; empty for a model of one size.",
        },
        "temperature": {"type": "number"},
        "unsure_below": _PROBABILITY,
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}

_ERROR = {
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["status", "problem", "message"],
            "properties": {
                "status": {"type": "integer"},
                "problem": {"type": "string"},
                "message": {"type": "string"},
            },
        },
        "request_id": {"type": "string"},
    },
}

_REFUSALS = {
    400: "no picture in the request, or a damaged form or JSON",
    413: "too many bytes or pixels",
    415: "not a picture of a known kind",
    422: "a picture that is damaged or too small",
    503: "busy; Retry-After says when to try again",
}


def describe(max_bytes: int) -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""

    def given(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    refusals = {
        str(status): {"description": text, "content": given("Error")}
        for status, text in _REFUSALS.items()
    }
    binary: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
    body: dict[str, Any] = {
        "application/octet-stream": binary,
        "image/*": binary,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "contentEncoding": "base64"}},
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Drones and birds",
            "version": "1",
            "description": "Which of four classes a picture shows: flying birds, large "
            f"quadcopters, small quadcopters, winged drones. At most {max_bytes / 2**20:g} MiB.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "The class of a picture",
                    "operationId": "predict",
                    "requestBody": {"required": True, "content": body},
                    "responses": {
                        "200": {"description": "The answer.", "content": given("Prediction")},
                        **refusals,
                    },
                }
            },
            "/model": {
                "get": {
                    "summary": "Which model answers, its classes and limits",
                    "operationId": "model",
                    "responses": {"200": {"description": "Facts.", "content": given("Model")}},
                }
            },
            "/health": {
                "get": {
                    "summary": "Whether the server runs",
                    "operationId": "health",
                    "responses": {
                        "200": {
                            "description": "It does.",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        }
                    },
                }
            },
        },
        "components": {
            "schemas": {
                "Prediction": _PREDICTION,
                "Named": _NAMED,
                "Model": _MODEL,
                "Error": _ERROR,
            }
        },
    }


def page(description: dict[str, Any]) -> str:
    """The description as a page for people, which loads nothing from elsewhere."""
    parts = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            answers = "".join(
                f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            )
            kinds = ", ".join(operation.get("requestBody", {}).get("content", {}))
            body = f"<p>Body: {html.escape(kinds)}</p>" if kinds else ""
            parts.append(
                f"<h2>{method.upper()} {html.escape(path)}</h2>"
                f"<p>{html.escape(operation['summary'])}.</p>{body}<table>{answers}</table>"
            )
    schemas = html.escape(json.dumps(description["components"]["schemas"], indent=1))
    info = description["info"]
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(info['title'])}</title>"
        "<style>:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;"
        "max-width:48rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem .8rem .1rem 0}"
        "pre{overflow-x:auto;font-size:.8rem}</style>"
        f"<h1>{html.escape(info['title'])}</h1><p>{html.escape(info['description'])}</p>"
        f'<p><a href="openapi.json">openapi.json</a></p>'
        "<pre>curl --data-binary @picture.jpg http://HOST/predict</pre>"
        f"{''.join(parts)}<h2>Schemas</h2><pre>{schemas}</pre></html>"
    )

"""The description of the HTTP API: an OpenAPI 3.1 schema and an HTML page of it."""

import html
import json
from typing import Any

from drone.labels import NONE, ROLES
from drone.serving.keeping import DO_NOT_KEEP

_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}

_EVIDENCE = {
    "type": "object",
    "description": "Only if requested: how much each part of the image speaks for a class.",
    "required": ["class", "map"],
    "properties": {
        "class": {
            "type": "string",
            "description": "The predicted class: the most probable one of the most probable role.",
        },
        "map": {
            "type": "array",
            "items": {"type": "array", "items": _PROBABILITY},
            "description": "A square grid over the image, stretched to its sides; rows from the "
            "top. Evidence against the class is 0, and the rest is divided by its maximum.",
        },
    },
}

_PREDICTION = {
    "type": "object",
    "required": [
        *("label", "index", "probabilities", "confidence", "unsure", "known"),
        *("model", "request_id"),
    ],
    "properties": {
        "label": {
            "type": "string",
            "description": f"The predicted class; {NONE!r} if the known score is too low.",
        },
        "index": {"type": "integer", "minimum": 0, "description": "Of the predicted class."},
        "probabilities": {"type": "object", "additionalProperties": _PROBABILITY},
        "confidence": _PROBABILITY,
        # null for a model without a bird class, which cannot tell drones from birds.
        "drone": {**_PROBABILITY, "type": ["number", "null"]},
        "kind": {
            "type": ["string", "null"],
            "enum": [*ROLES, None],
            "description": "The most probable role of a class; null for none of these, and if all "
            "classes have one role.",
        },
        "kind_probability": {**_PROBABILITY, "type": ["number", "null"]},
        "unsure": {"type": "boolean", "description": "The confidence is below the threshold."},
        "known": {
            **_PROBABILITY,
            "description": "How much the image is like those that the model was trained on.",
        },
        "evidence": _EVIDENCE,
        "alarm": {
            "type": "boolean",
            "description": "Whether drone is at least the model's alarm_above and the label is not "
            f"{NONE!r}; only for a model with alarm_above.",
        },
        "model": {"$ref": "#/components/schemas/ModelIdentity"},
        "request_id": {"type": "string"},
    },
}

_MODEL_IDENTITY = {
    "type": "object",
    "required": ["name", "version", "fingerprint"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "fingerprint": {"type": "string", "description": "Fingerprint of its dataset."},
    },
}

_MODEL = {
    "type": "object",
    "required": [*_MODEL_IDENTITY["required"], "classes", "preprocessing", "limits"],
    "properties": {
        **_MODEL_IDENTITY["properties"],  # type: ignore[dict-item]
        "classes": {"type": "array", "items": {"type": "string"}},
        "short_names": {"type": "array", "items": {"type": "string"}},
        "roles": {
            "type": "array",
            "items": {"type": "string", "enum": list(ROLES)},
            "description": "What alarms take each class for.",
        },
        "preprocessing": {"type": "object"},
        "sides_px": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Input sides of a multi-resolution model; otherwise empty.",
        },
        "temperature": {"type": "number"},
        "unsure_below": _PROBABILITY,
        "known_above": _PROBABILITY,
        "alarm_above": {
            **_PROBABILITY,
            "type": ["number", "null"],
            "description": "Probability of a drone that raises an alarm; null for no alarms.",
        },
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
        "keeps": {
            "type": ["object", "null"],
            "description": "Which images the server keeps, for how many days, and the header that "
            "forbids it; null if it keeps none.",
        },
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

_ERROR_DESCRIPTIONS = {
    400: "no image in the request, or a malformed form, JSON or query",
    401: "no API key, or an unknown one, where the service needs one",
    413: "too many bytes or pixels",
    415: "not an image of a supported format",
    422: "a damaged image, or one that is too small",
    429: "too many requests of this key or address; retry after the seconds in Retry-After",
    503: "too many requests; retry after the seconds in Retry-After",
}


_EVIDENCE_PARAMETER = {
    "name": "evidence",
    "in": "query",
    "description": "Whether the answer has the evidence too.",
    "schema": {"type": "boolean", "default": False},
}

_KEEP_PARAMETER = {
    "name": DO_NOT_KEEP,
    "in": "header",
    "description": "The image of a request with this header is not kept, whatever the value.",
    "schema": {"type": "string"},
}

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}


def _object_with_image(image: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["image"], "properties": {"image": image}}}


_IMAGE_BODY: dict[str, Any] = {
    "application/octet-stream": {"schema": _BINARY},
    # Whatever the type says: the format is detected from the content.
    "image/*": {"schema": _BINARY},
    "multipart/form-data": _object_with_image(_BINARY),
    "application/json": _object_with_image(
        {"type": "string", "description": "Base64, wrapped or not, or a data URL."}
    ),
    "text/plain": {"schema": {"type": "string", "description": "Base64 or a data URL."}},
}


def _json_response(description: str, schema: str) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def openapi_schema(max_bytes: int, keep_notice: str = "") -> dict[str, Any]:
    """Returns the interface as an OpenAPI 3.1 document.

    Args:
        max_bytes: Maximum length of a request body, for the description.
        keep_notice: What is kept of images, and for how long; empty if nothing is.
    """
    keeps = keep_notice or "Images are not kept."
    # Every one of these has the same body, so that clients need one error type.
    errors = {
        str(status): _json_response(description, "Error")
        for status, description in _ERROR_DESCRIPTIONS.items()
    }
    predict = {
        "summary": "Classify an image",
        "operationId": "predict",
        "parameters": [_EVIDENCE_PARAMETER, _KEEP_PARAMETER],
        "requestBody": {"required": True, "content": _IMAGE_BODY},
        "responses": {"200": _json_response("prediction", "Prediction"), **errors},
    }
    model = {
        "summary": "The model's name, classes and limits",
        "operationId": "model",
        "responses": {
            "200": _json_response("model", "Model"),
            **{status: errors[status] for status in ("401", "429")},
        },
    }
    health = {
        "summary": "Whether the server runs",
        "operationId": "health",
        "security": [],
        "responses": {"200": _json_response("the server runs", "Health")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Drones and birds",
            "version": "1",
            "description": "Classifies an image as one of the classes that GET /model names, or as "
            f"{NONE!r}. Images of at most {max_bytes / 2**20:g} MiB. {keeps}",
        },
        "paths": {
            "/predict": {"post": predict},
            "/model": {"get": model},
            "/health": {"get": health},
        },
        # The empty one: most services need no key.
        "security": [{}, {"bearer": []}, {"header": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {
                "Prediction": _PREDICTION,
                "ModelIdentity": _MODEL_IDENTITY,
                "Model": _MODEL,
                "Health": {"type": "object"},
                "Error": _ERROR,
            },
        },
    }


def docs_page(schema: dict[str, Any]) -> str:
    """Returns an OpenAPI document as an HTML page that loads nothing from other servers."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            responses = "".join(
                f"<tr><td>{status}</td><td>{html.escape(response['description'])}</td></tr>"
                for status, response in operation["responses"].items()
            )
            media_types = ", ".join(operation.get("requestBody", {}).get("content", {}))
            body = f"<p>Body: {html.escape(media_types)}</p>" if media_types else ""
            body += "".join(
                f"<p>{item['in'].title()}: {html.escape(item['name'])}. "
                f"{html.escape(item['description'])}</p>"
                for item in operation.get("parameters", [])
            )
            parts.append(
                f"<h2>{method.upper()} {html.escape(path)}</h2>"
                f"<p>{html.escape(operation['summary'])}.</p>{body}<table>{responses}</table>"
            )
    schemas = html.escape(json.dumps(schema["components"]["schemas"], indent=1))
    info = schema["info"]
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(info['title'])}</title>"
        "<style>:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;"
        "max-width:48rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem .8rem .1rem 0}"
        "pre{overflow-x:auto;font-size:.8rem}</style>"
        f"<h1>{html.escape(info['title'])}</h1><p>{html.escape(info['description'])}</p>"
        f'<p><a href="openapi.json">openapi.json</a></p>'
        "<pre>curl --data-binary @image.jpg http://HOST/predict</pre>"
        f"{''.join(parts)}<h2>Schemas</h2><pre>{schemas}</pre></html>"
    )

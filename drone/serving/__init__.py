"""Serves an exported model: from an image's bytes to a prediction, over HTTP and on AWS Lambda.

Needs only numpy, pillow, onnxruntime and python-multipart, so it starts fast and fits a Lambda
package; with pillow-heif it reads HEIC too. The HTTP server also needs starlette, uvicorn and
prometheus-client. From the rest of the project it imports `drone.labels` and `drone.errors` alone.

preprocess: `Preprocessing` and `to_pixels`, the one way from bytes to the model's input.
decode_limits: rejects files that would take a decoder too long.
metadata: removes what the pixels do not depend on; jpeg_segments, gif_blocks and tiff_directories
    are the structures of files that both follow.
unsupported: names formats that are not read.
bit_depth, blank: images of more than 8 bits, and those that show nothing.
text_body: images that arrive as base64 or data URLs.
predictor: `Predictor` loads an ONNX file and returns a `Prediction`; `ModelInfo` describes it.
many: predictions of many files, in threads.
drift: how answers spread, and how that differs from the reference in a model's file.
api: `Api` handles requests without a server; `ApiSettings` has its limits.
http: `HttpApp` is the ASGI application with a queue; `HttpSettings` has its concurrency.
connections: `LimitedServer` runs the app; `ConnectionSettings` has its limits on clients.
keeping, background_keeper: keep served images to be labelled and trained on; `KeepSettings`.
access: admits requests by their API key (api_keys) and limits them (rate_limit).
tls: certificate and key of the server.
metrics: what a server counts, for Prometheus.
memory: lets the process return the memory of images.
lambda_handler: `handler` is the AWS Lambda function; lambda_keeping keeps its images in a bucket.
openapi: the OpenAPI schema of the interface and the page at /docs.
"""

from drone.serving.predictor import ModelInfo, Prediction, Predictor
from drone.serving.preprocess import Preprocessing

__all__ = ["ModelInfo", "Prediction", "Predictor", "Preprocessing"]

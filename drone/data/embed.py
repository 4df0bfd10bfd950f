"""Embeds images and scripts in HTML, so that a page needs no files beside it."""

import base64
import io
from pathlib import Path

from PIL import Image


def data_uri(data: bytes, subtype: str = "png") -> str:
    """Returns the data URI of an encoded image, of the media type image/`subtype`."""
    return f"data:image/{subtype};base64,{base64.b64encode(data).decode()}"


def jpeg_data_uri(image: Image.Image) -> str:
    """Encodes an image as JPEG and returns its data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")


def heat_map_script() -> str:
    """Returns the script of the element `<heat-map>`, which draws evidence over an image."""
    return Path(__file__).with_name("heat-map.js").read_text("utf-8")

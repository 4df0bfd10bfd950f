"""Pictures inside an HTML page, which so needs nothing beside it."""

import base64
import io

from PIL import Image


def data_uri(data: bytes, kind: str = "png") -> str:
    """An image as the address that an HTML page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def as_jpeg(image: Image.Image) -> str:
    """A picture as the data URI of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")

"""Images in requests: data URLs (RFC 2397). Nothing is ever fetched for a client."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from lmd.errors import InvalidRequest
from lmd.generation import ImagePart


def image_of(url: str, param: str) -> ImagePart:
    """The picture in ``url``. InvalidRequest names ``param``."""
    head, comma, data = url.partition(",")
    if not url.startswith("data:") or not comma:
        raise InvalidRequest(
            f"'{param}' is not a data URL.",
            hint="lmd fetches nothing: send the image as data:image/…;base64,….",
            param=param,
        )
    media_type, *options = head.removeprefix("data:").split(";")
    if "base64" in options:
        return ImagePart(base64_of(data, param), media_type or "application/octet-stream")
    return ImagePart(unquote_to_bytes(data), media_type or "application/octet-stream")


def base64_of(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"'{param}' is not base64: {error}.", param=param) from None

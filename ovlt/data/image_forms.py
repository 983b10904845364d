"""The forms in which rows hold images: paths, bytes, base64 and data URIs, in dicts and lists."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from urllib.parse import unquote

from ovlt.data.image_refs import BadImage, ImageRef

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
# How PNG, JPEG, GIF, WebP, BMP and TIFF start in base64. "/9j/" looks like a path, but a path has
# no such length.
_BASE64 = re.compile(
    r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[01]|SUkqA|TU0AK)[A-Za-z0-9+/=_\s-]{100,}"
)
# Keys under which an object holds its image, the first that is there counts.
HOLDERS = (
    "bytes", "data", "base64", "b64_json", "image", "image_url", "url", "path", "file",
    "source", "file_name", "filename",
)  # fmt: skip
IMAGE_SUFFIX = re.compile(r"\.(?:png|jpe?g|webp|avif|gif|bmp|tiff?|ppm|pgm)\Z", re.IGNORECASE)


def image_refs(images: object, base: Path) -> tuple[ImageRef, ...]:
    """Return the images of a row, whatever form its column has. Raises BadImage.

    ``images`` is None, one image, or a list: each a path relative to ``base``, bytes, base64, a
    data URI, or an object that holds one of these, such as the ``{bytes, path}`` of a Hugging Face
    image column or the ``{url}`` of an OpenAI part.
    """
    if images is None:
        return ()
    if isinstance(images, str) and images.lstrip().startswith("["):
        images = _listed(images)
    return tuple(
        _image_ref(image, base) for image in (images if isinstance(images, list) else [images])
    )


def _listed(text: str) -> object:
    """Return the list that a text spells in JSON; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _image_ref(image: object, base: Path) -> ImageRef:
    name = ""
    for _ in range(4):  # an image_url in an image_url, at most
        if not isinstance(image, dict):
            break
        path = image.get("path") or image.get("file_name") or image.get("filename")
        name = path if isinstance(path, str) else name
        image = next((image[key] for key in HOLDERS if image.get(key) is not None), None)
    if isinstance(image, bytes):
        return ImageRef(path=name, data=image)
    if not isinstance(image, str) or not image.strip():
        raise BadImage("image is neither a path nor bytes")
    return _of_text(image, name, base)


def _of_text(text: str, name: str, base: Path) -> ImageRef:
    if text[:5].lower() == "data:":
        return ImageRef(path=name, data=_of_data_uri(text))
    if _BASE64.match(text):
        return ImageRef(path=name, data=_of_base64(text))
    scheme = _SCHEME.match(text)
    if scheme is not None:
        if scheme["scheme"].lower() != "file":
            raise BadImage(
                f"images at an address ({scheme['scheme'].lower()}:) are not fetched: download "
                "them and give their paths",
                text[:200],
            )
        text = "/" + unquote(text[scheme.end() :].partition("/")[2])
    if "\0" in text:
        raise BadImage("image is neither a path nor bytes")
    path = base / text
    if "\\" in text and not path.exists():  # written on Windows
        path = base / text.replace("\\", "/")
    return ImageRef(path=str(path))


def _of_data_uri(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise BadImage("data: URI of an image has no comma before its data", text[:60])
    if not head.lower().rstrip().endswith(";base64"):
        raise BadImage("data: URI of an image is not base64", text[:60])
    return _of_base64(unquote(body) if "%" in body else body)


def _of_base64(text: str) -> bytes:
    plain = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("base64 of an image is broken", text[:60]) from None


def holds_image(value: object) -> bool:
    """Whether a cell is an image beyond doubt: bytes, or a data URI, by itself or in a list."""
    if isinstance(value, list):
        return any(map(holds_image, value[:8]))
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes)
    if isinstance(value, str):
        return value[:11].lower() == "data:image/" or _BASE64.match(value) is not None
    return isinstance(value, bytes)


def names_image(value: object) -> bool:
    """Whether a cell is a path with the ending of an image, or a list of such paths."""
    if isinstance(value, list):
        return bool(value) and all(map(names_image, value[:8]))
    return isinstance(value, str) and len(value) < 1000 and bool(IMAGE_SUFFIX.search(value))

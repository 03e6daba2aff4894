"""What schemathesis cannot know from the document: bytes that are images."""

import base64
import pathlib

import schemathesis
from hypothesis import strategies

PHOTOS = pathlib.Path(__file__).parent.parent / "tests" / "photos"
PHOTO = (PHOTOS / "goldfish.jpg").read_bytes()
PIXELS = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mM8ESXCwMDAxMDAwMDAAAAPZgE6i6Ct7QAAAABJRU5ErkJggg=="
)
IMAGES = strategies.sampled_from([PIXELS, PHOTO])
TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream"]

# The server looks at the bytes, not at which of these types they are said to have.
for media_type in TYPES:
    schemathesis.openapi.media_type(media_type, IMAGES)
schemathesis.openapi.format("binary", IMAGES)
schemathesis.openapi.format("byte", IMAGES.map(lambda image: base64.b64encode(image).decode()))


@schemathesis.hook
def filter_body(context, body):
    """No names in which a form's header cannot be written, be it by any client."""
    return not isinstance(body, dict) or all(name.isprintable() for name in body)

"""Images of a data set: read from a cell, checked, and named by the sha256 of their bytes.

Cells are untrusted. The bytes must begin as one of four formats, be small enough before they are decoded, and decode to
the end. A checked image becomes an `ImageRef`; its bytes go to a store, never into a message.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from cepo.errors import UserError
from cepo.messages.groups import ImageRef
from cepo.net.files import make_folder, replace_file
from cepo.prompts.pixels import upright

MAX_IMAGES = 16
"""Images of one row."""
MAX_BYTES = 32 * 2**20
"""Size of one encoded image."""
MAX_PIXELS = 2**24
"""Pixels of one image: 4096 x 4096."""
STORE_BYTES = 64 * 2**30
PATH_CHARACTERS = 200
"""Characters of a path in an error message: a cell may hold a whole image in base64 where a path is expected."""
MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # several images in one JPEG file, such as a photograph and its depth map; the first is used
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
_READERS = ("PNG", "JPEG", "WEBP", "GIF")
_FIRST_BYTES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_BAD = (OSError, ValueError, SyntaxError, EOFError)
"""What Pillow raises for bytes that are not an image, or a truncated one."""


class ImageSink(Protocol):
    """Takes the images of a data set while its rows are read."""

    def put(self, data: bytes) -> None:
        """Takes the bytes of one image, which was checked before."""


class ImageStore:
    """A folder of images, each file named by the sha256 of its bytes."""

    def __init__(self, folder: Path, max_bytes: int = STORE_BYTES) -> None:
        """Opens a store. The folder is created with the first image.

        Args:
            max_bytes: limit of the whole store. Images are never evicted, because a run needs all of them.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
        self._made: list[Path] = []
        """The folders and images that this store made, in order."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Removes the images that were put in the block, and the folders made for them, if the block raises."""
        self._made.clear()
        try:
            yield
        except BaseException:
            for path in reversed(self._made):
                with contextlib.suppress(OSError):  # a folder that holds other files stays
                    path.rmdir() if path.is_dir() else path.unlink()
            raise

    def put(self, data: bytes) -> None:
        """Writes an image, unless the store has it already.

        Raises:
            UserError: the store is full.
        """
        path = self._folder / hashlib.sha256(data).hexdigest()
        if path.is_file():
            return
        if self._bytes + len(data) > self._max_bytes:
            raise UserError(f"the images in {self._folder} exceed {self._max_bytes} bytes; use fewer rows (data.limit)")
        missing = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
        make_folder(self._folder)
        self._made += [*reversed(missing), path]
        replace_file(path, data)
        self._bytes += len(data)

    def read(self, image: ImageRef) -> bytes:
        """The bytes of an image.

        Raises:
            UserError: the file is missing, or its bytes do not match the sha256.
        """
        path = self._folder / image.sha256  # ImageRef allows only hexadecimal digits
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise UserError(f"image {image.sha256[:12]} is missing or damaged in {self._folder}; start a new run")
        return data


def cells(value: Any) -> list[Any]:
    """The images in a column's value, undecoded: a value is one image, a list of images, or empty.

    Raises:
        UserError: there are more than MAX_IMAGES.
    """
    listed = list(value) if isinstance(value, list | tuple) else [value]
    images = [each for each in listed if each is not None and each != ""]
    if len(images) > MAX_IMAGES:
        raise UserError(f"holds {len(images)} images, more than {MAX_IMAGES}; use fewer")
    return images


def read(cell: Any, folder: Path | None) -> bytes:
    """The encoded bytes of an image.

    Args:
        cell: bytes, a `{"bytes", "path"}` object (the Image feature of `datasets`), a PIL image, a data URI, or a path.
        folder: the folder that paths are relative to. None for a data set from the network, which may not name files.

    Raises:
        UserError: the cell is not an image or cannot be read; the message says how to fix it.
    """
    match cell:
        case bytes() | bytearray() | memoryview():
            return bytes(cell)
        case {"bytes": bytes() as data}:
            return data
        case {"path": str() as path}:
            return _file(path, folder)
        case str() if cell.startswith("data:"):
            return _data_uri(cell)
        case str():
            return _file(cell, folder)
    if hasattr(cell, "save") and hasattr(cell, "size"):
        return _encoded(cell)
    raise UserError(f"holds {type(cell).__name__}, which is not an image; give bytes, a path or a data URI")


def checked(data: bytes) -> ImageRef:
    """Decodes an image to the end, and returns its reference.

    Raises:
        UserError: the image is too large, of another format, animated or damaged; the message says how to fix it.
    """
    from PIL import Image, UnidentifiedImageError

    if len(data) > MAX_BYTES:
        raise UserError(f"holds an image of {len(data)} bytes, more than {MAX_BYTES}; make it smaller")
    if not data.startswith(_FIRST_BYTES):
        raise UserError("holds bytes that are not PNG, JPEG, WebP or GIF; convert the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            with Image.open(BytesIO(data), formats=_READERS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(_too_large(width, height))
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise UserError("holds an animation; use one of its frames")
                image.load()
                width, height = upright(image).size
                media_type = MEDIA_TYPES[str(image.format)]
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"holds an image that is too large: {error}; make it smaller") from error
    except UnidentifiedImageError as error:
        raise UserError("holds a damaged image, which cannot be read; replace it") from error
    except _BAD as error:
        raise UserError(f"holds a damaged image: {error}; replace it") from error
    return ImageRef(sha256=hashlib.sha256(data).hexdigest(), media_type=media_type, width=width, height=height)


def data_uri(data: bytes) -> str:
    """An image as a base64 data URI, the format of images in requests.

    Raises:
        UserError: the bytes are not an image; the message says how to fix it.
    """
    return f"data:{checked(data).media_type};base64,{base64.b64encode(data).decode()}"


def _file(name: str, folder: Path | None) -> bytes:
    if "://" in name:
        raise UserError(f"holds the URL {name[:80]}; download the image and give its path")
    if folder is None:
        raise UserError(f"holds the path {name[:80]}, but only a data set on this machine may name files; give bytes")
    where = str(folder / name)[:PATH_CHARACTERS]
    try:
        path = folder / Path(name).expanduser()
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"holds {where}, which is larger than {MAX_BYTES} bytes; make it smaller")
        if not path.is_file():  # reading a device may never end
            raise UserError(f"holds the path {where}, which is not a file; paths are relative to the data file")
        if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
            raise UserError(
                f"holds the path {where}, which is outside the folder of the data file; copy the image there"
            )
        return path.read_bytes()
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"holds the path {where}: {reason}; paths are relative to the data file") from error


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError(f"holds {head[:40]!r}, which is not a base64 data URI; write data:image/png;base64,...")
    if len(body) > 2 * MAX_BYTES:
        raise UserError(f"holds a data URI of {len(body)} characters; make the image smaller than {MAX_BYTES} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"holds a data URI that is not base64: {error}; encode the image again") from error


def _encoded(image: Any) -> bytes:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(_too_large(width, height))
    file = BytesIO()
    try:
        upright(image).save(file, format="PNG")
    except _BAD as error:
        raise UserError(f"holds an image that cannot be written as PNG: {error}; convert it to RGB") from error
    return file.getvalue()


def _too_large(width: int, height: int) -> str:
    return f"holds an image of {width} x {height} pixels, more than {MAX_PIXELS}; make it smaller"

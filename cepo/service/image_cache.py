"""A cache of images by digest: each is fetched from the trainer once and verified. The cache is bounded."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from cachetools import LRUCache

from cepo.errors import UserError, WireError
from cepo.messages.groups import ImageRef
from cepo.messages.wire import from_proto
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2
from cepo.prompts.images import ImageStore
from cepo.service.fetching import stream_from_trainer

CHUNK_BYTES = 2**20
KEPT_BYTES = 256 * 2**20

ReadImage = Callable[[ImageRef], Awaitable[bytes]]
"""Returns the bytes of an image. Raises UserError if it is not available."""


async def no_images(image: ImageRef) -> bytes:
    """Reads no image: for services without a trainer."""
    raise UserError(f"image {image.sha256[:12]} is not available; only the trainer of its run serves it")


class ImageCache:
    """A cache of image bytes, which evicts the least recently used first."""

    def __init__(self, fetch: ReadImage, max_bytes: int = KEPT_BYTES) -> None:
        self._fetch = fetch
        # an image above the limit counts as the limit, so that it is kept alone
        self._kept: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=lambda data: min(len(data), max_bytes))

    async def read(self, image: ImageRef) -> bytes:
        """The bytes of an image.

        Raises:
            UserError: the image is not available, or its bytes do not match its digest.
        """
        if image.sha256 not in self._kept:
            data = await self._fetch(image)
            if hashlib.sha256(data).hexdigest() != image.sha256:
                raise UserError(f"image {image.sha256[:12]} is damaged: its bytes do not match its sha256")
            self._kept[image.sha256] = data
        return self._kept[image.sha256]


def trainer_images(settings: Settings) -> ImageCache:
    """A cache that fetches images from the trainer."""

    async def fetch(image: ImageRef) -> bytes:
        return await fetch_image(settings, image)

    return ImageCache(fetch)


async def fetch_image(settings: Settings, image: ImageRef) -> bytes:
    """Fetches an image from TrainerService.FetchImage.

    Raises:
        Unreachable: the trainer does not answer in time.
        UserError: the trainer does not have this image.
    """
    data = bytearray()
    async for chunk in stream_from_trainer(settings, "FetchImage", image, UserError):
        data += chunk.data
    return bytes(data)


def serve_images(
    store: ImageStore,
) -> Callable[[Any, grpc.aio.ServicerContext], AsyncIterator[services_pb2.ImageChunk]]:
    """The handler of TrainerService.FetchImage, which streams images of the store."""

    async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[services_pb2.ImageChunk]:
        try:
            data = store.read(from_proto(ImageRef, request))
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except UserError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        for at in range(0, len(data), CHUNK_BYTES):
            yield services_pb2.ImageChunk(data=data[at : at + CHUNK_BYTES])

    return stream

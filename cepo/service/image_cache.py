"""A cache of images by digest: each is fetched from the trainer once and verified. The cache is bounded."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from cepo.errors import Unreachable, UserError, WireError
from cepo.messages.groups import ImageRef
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.prompts.images import ImageStore

FETCH_SECONDS = 180.0
"""Timeout of a fetch; long enough for a trainer that restarts."""
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
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    async def read(self, image: ImageRef) -> bytes:
        """The bytes of an image.

        Raises:
            UserError: the image is not available, or its bytes do not match its digest.
        """
        if image.sha256 not in self._kept:
            data = await self._fetch(image)
            if hashlib.sha256(data).hexdigest() != image.sha256:
                raise UserError(f"image {image.sha256[:12]} is damaged: its bytes do not match its sha256")
            if image.sha256 not in self._kept:  # another task may have fetched it meanwhile
                self._kept[image.sha256] = data
                self._bytes += len(data)
        self._kept.move_to_end(image.sha256)
        data = self._kept[image.sha256]
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


def trainer_images(settings: Settings) -> ImageCache:
    """A cache that fetches images from the trainer."""

    async def fetch(image: ImageRef) -> bytes:
        return await fetch_from_trainer(settings, image)

    return ImageCache(fetch)


async def fetch_from_trainer(settings: Settings, image: ImageRef) -> bytes:
    """Streams an image from TrainerService.FetchImage.

    Raises:
        Unreachable: the trainer does not answer in time.
        UserError: the trainer does not have this image.
    """
    address, metadata = settings.trainer_address, Tokens.of(settings).metadata()
    data = bytearray()
    async with channel(address, settings) as trainer:
        stub = services_pb2_grpc.TrainerServiceStub(trainer)
        try:
            call = stub.FetchImage(to_proto(image), metadata=metadata, timeout=FETCH_SECONDS, wait_for_ready=True)
            async for chunk in call:
                data += chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise UserError(str(error.details())) from error
            raise Unreachable(f"trainer at {address}: {error.code().name}: {error.details()}") from error
    return bytes(data)


def serve_images(
    store: ImageStore,
) -> Callable[[Any, grpc.aio.ServicerContext], AsyncIterator[services_pb2.ImageChunk]]:
    """The handler of TrainerService.FetchImage, which streams images of the store."""

    async def fetch_image(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[services_pb2.ImageChunk]:
        try:
            data = store.read(from_proto(ImageRef, request))
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except UserError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        for at in range(0, len(data), CHUNK_BYTES):
            yield services_pb2.ImageChunk(data=data[at : at + CHUNK_BYTES])

    return fetch_image

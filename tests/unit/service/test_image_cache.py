"""Images are streamed from the trainer to an engine, verified, and kept in a bounded cache."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from cepo.errors import Unreachable, UserError
from cepo.messages.groups import ImageRef
from cepo.net.auth import TokenInterceptor, Tokens
from cepo.net.connections import GRPC_OPTIONS
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.images import ImageStore
from cepo.service.image_cache import CHUNK_BYTES, ImageCache, fetch_image, no_images, serve_images
from tests.helpers.vision import drawn, picture_of

ONE, TWO = drawn(5, 3), drawn(6, 3)
ABSENT = ImageRef(sha256="0" * 64, media_type="image/png", width=1, height=1)


async def test_an_image_is_streamed_from_the_trainer_to_who_has_the_token(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    large = picture_of(ONE.data + bytes(2 * CHUNK_BYTES))  # any bytes may follow a PNG
    store.put(large.data)

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        FetchImage = staticmethod(serve_images(store))

    server = grpc.aio.server(interceptors=[TokenInterceptor(Tokens("secret"))], options=GRPC_OPTIONS)
    services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        assert await fetch_image(Settings(trainer_address=address, token="secret"), large.ref) == large.data
        with pytest.raises(UserError, match=r"image 000000000000 is missing or damaged in .*; start a new run"):
            await fetch_image(Settings(trainer_address=address, token="secret"), ABSENT)
        with pytest.raises(Unreachable, match="UNAUTHENTICATED"):
            await fetch_image(Settings(trainer_address=address, token="wrong"), large.ref)
    finally:
        await server.stop(None)


async def test_the_least_recently_used_goes_first() -> None:
    fetched = []
    bytes_of = {image.ref: image.data for image in (ONE, TWO)}

    async def fetch(image: ImageRef) -> bytes:
        fetched.append(image)
        return bytes_of[image]

    roomy, narrow = ImageCache(fetch), ImageCache(fetch, max_bytes=len(ONE.data) + 1)
    for cache, wanted in ((roomy, [ONE.ref, TWO.ref]), (narrow, [ONE.ref, TWO.ref, ONE.ref])):
        fetched.clear()
        for image in (ONE, ONE, TWO, TWO, ONE):
            assert await cache.read(image.ref) == image.data
        assert fetched == wanted


async def test_bytes_of_another_name_are_refused() -> None:
    async def fetch(image: ImageRef) -> bytes:
        return TWO.data

    with pytest.raises(UserError, match="is damaged: its bytes do not match its sha256"):
        await ImageCache(fetch).read(ONE.ref)
    with pytest.raises(UserError, match="is not available; only the trainer of its run serves it"):
        await no_images(ONE.ref)

"""The images of credit requests: decoded from data URIs, and available to the scorer while their request runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cepo.errors import UserError
from cepo.messages.groups import ImageRef
from cepo.prompts.images import checked, read
from cepo.service.image_cache import ReadImage


class GivenImages:
    """A source of images, whose `read` is a `ReadImage`: the images of running requests, then those of the trainer."""

    def __init__(self, fetch: ReadImage) -> None:
        self._fetch = fetch
        self._held: list[Mapping[ImageRef, bytes]] = []

    @contextmanager
    def held(self, images: Mapping[ImageRef, bytes]) -> Iterator[None]:
        """Makes images available to `read` inside the `with` block."""
        self._held.append(images)
        try:
            yield
        finally:
            self._held = [other for other in self._held if other is not images]

    async def read(self, image: ImageRef) -> bytes:
        """Returns the bytes of an image.

        Raises:
            UserError: no running request holds the image, and it cannot be fetched.
        """
        data = next((images[image] for images in self._held if image in images), None)
        return await self._fetch(image) if data is None else data


def pictures(uris: Sequence[str]) -> list[tuple[ImageRef, bytes]]:
    """Decodes data URIs into images and their bytes. Fetches no address and opens no file.

    Raises:
        UserError: a URI is no data URI or holds no image; the message names its index.
    """
    images = []
    for at, uri in enumerate(uris):
        try:
            if not uri.startswith("data:"):
                raise UserError(f"holds {uri[:40]!r}, which is no data URI; send data:image/png;base64,...")
            data = read(uri, None)
            images.append((checked(data), data))
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error
    return images

"""Images that come with a credit request: decoded from data URIs, and at hand for the scorer while it is at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cepo.errors import UserError
from cepo.messages.groups import ImageRef
from cepo.prompts.images import checked, read
from cepo.service.image_cache import ReadImage


class GivenImages:
    """The images of requests beside those that are fetched: a `ReadImage`."""

    def __init__(self, fetch: ReadImage) -> None:
        self._fetch = fetch
        self._held: list[Mapping[ImageRef, bytes]] = []

    @contextmanager
    def held(self, images: Mapping[ImageRef, bytes]) -> Iterator[None]:
        """Has them at hand for as long as the context lasts."""
        self._held.append(images)
        try:
            yield
        finally:
            self._held = [other for other in self._held if other is not images]

    async def read(self, image: ImageRef) -> bytes:
        """The bytes of an image.

        Raises:
            UserError: no request at work holds it, and it is not to be had elsewhere.
        """
        found = next((images[image] for images in self._held if image in images), None)
        return await self._fetch(image) if found is None else found


def pictures(uris: Sequence[str]) -> list[tuple[ImageRef, bytes]]:
    """Each image by its content. No address is fetched and no file opened.

    Raises:
        UserError: one is no data URI, or no image; names it.
    """
    found = []
    for at, uri in enumerate(uris):
        try:
            if not uri.startswith("data:"):
                raise UserError(f"holds {uri[:40]!r}, which is no data URI; send data:image/png;base64,...")
            data = read(uri, None)
            found.append((checked(data), data))
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error
    return found

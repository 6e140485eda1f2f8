"""Safety of the engine's arguments: vLLM's loader fetches no URL, and code that comes with a model does not run."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image
from vllm.multimodal.media import MediaConnector

from cepo.net.settings import Settings
from cepo.run.deployment import SPECS
from services.rollout.engine import _engine_args
from tests.helpers.factories import make_config


@pytest.fixture
def fetched() -> Iterator[tuple[int, list[str]]]:
    """The port of a server that has an image, and the paths that were requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, paths
    server.shutdown()
    thread.join()
    server.server_close()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def connector() -> MediaConnector:
    """The connector that vLLM builds from the engine's arguments."""
    chosen = _engine_args(Settings(model="any", device="cpu"))
    return MediaConnector(
        allowed_local_media_path=chosen.allowed_local_media_path, allowed_media_domains=chosen.allowed_media_domains
    )


async def test_no_address_is_fetched(fetched: tuple[int, list[str]]) -> None:
    port, paths = fetched
    for url in (f"http://127.0.0.1:{port}/x.png", f"http://nowhere.invalid@127.0.0.1:{port}/x.png"):
        with pytest.raises(ValueError, match="allowed domains"):
            await connector().fetch_image_async(url)
    with pytest.raises(RuntimeError, match="allowed-local-media-path"):
        await connector().fetch_image_async("file:///etc/passwd")
    assert paths == []


async def test_an_image_in_the_request_itself_is_read() -> None:
    image = await connector().fetch_image_async(f"data:image/png;base64,{base64.b64encode(png()).decode()}")
    assert getattr(image, "media", image).size == (2, 2)


def test_the_code_of_a_model_is_not_run() -> None:
    assert _engine_args(Settings(model="any", device="cpu")).trust_remote_code is False


def test_an_engine_takes_the_gpus_that_the_run_gives_it() -> None:
    settings = SPECS["rollout"].settings(make_config("engine.tensor_parallel=2", "engine.device=cuda"), Settings())
    assert _engine_args(settings).tensor_parallel_size == 2

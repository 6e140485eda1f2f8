"""vLLM and images: this project's model replaces vLLM's own, and no address is fetched."""

from __future__ import annotations

import base64
import http.server
import threading
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from vllm import ModelRegistry
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.media.image import ImageMediaIO

from cepo.errors import UserError
from cepo.net.settings import Settings
from services.rollout.engine import _engine_args
from services.rollout.vllm_patches.vision_plugin import GROUP, register, require_plugin
from tests.helpers.vision import MODEL, drawn


def test_an_address_is_not_fetched_and_data_is_read() -> None:
    fetched = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = _engine_args(Settings(model=MODEL))
    connector = MediaConnector(
        allowed_local_media_path=arguments.allowed_local_media_path,
        allowed_media_domains=arguments.allowed_media_domains,
    )
    try:
        with pytest.raises(ValueError, match="The URL must be from one of the allowed domains"):
            connector.load_from_url(f"http://127.0.0.1:{server.server_port}/a.png", ImageMediaIO())
        with pytest.raises(RuntimeError, match="Cannot load local files"):
            connector.load_from_url(f"file://{MODEL}/config.json", ImageMediaIO())
    finally:
        server.shutdown()
        server.server_close()
    assert fetched == []
    uri = "data:image/png;base64," + base64.b64encode(drawn(5, 3).data).decode()
    assert connector.load_from_url(uri, ImageMediaIO()).media.size == (5, 3)


def test_the_package_says_where_the_plugin_is() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    named = project["entry-points"][GROUP]["cepo"]
    entry = EntryPoint("cepo", named, GROUP)
    assert entry.load() is register
    require_plugin([EntryPoint("other", "a.b:c", GROUP), entry])
    with pytest.raises(UserError, match=r"vLLM does not find cepo's plugin .*, which images need; reinstall"):
        require_plugin([EntryPoint("other", "a.b:c", GROUP)])


def test_the_plugin_names_our_model_and_may_be_called_again() -> None:
    for _ in range(2):
        register()
    assert ModelRegistry.models["Qwen3VLForConditionalGeneration"].class_name == "Qwen3VLImages"

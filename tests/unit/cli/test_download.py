"""The download of a run's model: what is fetched, once, and what happens without the Hub."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from cepo import tiny
from cepo.cli.download import download
from cepo.errors import CepoError, Unreachable, UserError
from cepo.net.environment import child_environment

REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "consolidated.safetensors": b"the weights again",
    "original/params.json": b"{}",
    "pytorch_model.bin": b"the weights once more",
    "README.md": b"text",
}
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Serves one repository as the Hugging Face Hub does, and records the files that it sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.sent: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if name:
            body = REPOSITORY[name]
            self.reply(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(name)}"'})
            self.server.sent += [name] * (self.command == "GET")
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in REPOSITORY.items()]
            self.reply(200, json.dumps(tree).encode(), {})
        else:
            siblings = [{"rfilename": file} for file in REPOSITORY]
            self.reply(200, json.dumps({"id": "a/b", "sha": COMMIT, "siblings": siblings}).encode(), {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server
        server.shutdown()


def run_file(folder: Path, model: str) -> Path:
    file = folder / "run.toml"
    file.write_text(
        f'name = "a"\n[model]\npath = "{model}"\n[data]\ntrain = "rows.jsonl"\n[algorithm]\nname = "grpo"\n'
    )
    return file


def fetched(file: Path, cache: Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command as a container runs it."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **more}
    words = [sys.executable, "-m", "cepo.cli.download", str(file)]
    return subprocess.run(words, capture_output=True, text=True, env=child_environment(variables))


def test_the_model_is_downloaded_once_without_second_copies(hub: Hub, tmp_path: Path) -> None:
    """The second call finds the files, without a network too."""
    file, address = run_file(tmp_path, "a/b"), f"http://127.0.0.1:{hub.server_port}"
    first = fetched(file, tmp_path / "cache", address)
    assert first.returncode == 0, first.stderr
    second = fetched(file, tmp_path / "cache", address, HF_HUB_OFFLINE="1")
    assert first.stdout == second.stdout == f"model: a/b is in {tmp_path}/cache/hub/models--a--b/snapshots/{COMMIT}\n"
    assert sorted(hub.sent) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        (
            HFValidationError("it has three parts"),
            UserError,
            "it has three parts; give a folder or a Hugging Face name",
        ),
        (LocalEntryNotFoundError("no network"), Unreachable, "is not in the cache, and the Hub does not answer"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(
    failure: Exception, error: type[CepoError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(error, match=f"^model.path=a/b.*{says}"):
        download(run_file(tmp_path, "a/b"))


def test_a_folder_needs_no_download(tmp_path: Path) -> None:
    assert download(run_file(tmp_path, str(tiny.path()))) == f"model: {tiny.path()} is a folder; nothing is downloaded"
    with pytest.raises(UserError, match=r"model\.path=/nowhere: no config\.json there"):
        download(run_file(tmp_path, "/nowhere"))

"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cepo.errors import StorageError
from cepo.net.files import replace_file, replace_folder


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for content in (b"one", b"", b"three"):
        replace_file(tmp_path / "file", content)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": content}


def test_a_file_that_cannot_be_replaced_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"/file cannot be written: No space left on device; free space"):
        replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    for names in ({"a", "b"}, {"c"}):
        with replace_folder(tmp_path / "folder") as scratch:
            for name in names:
                (scratch / name).write_text(name)
            assert scratch.name.startswith(".")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        assert {path.name for path in (tmp_path / "folder").iterdir()} == names


def test_a_folder_whose_writer_fails_is_left_as_it_was(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "folder") as scratch:
        (scratch / "a").write_text("old")

    def write() -> None:
        with replace_folder(tmp_path / "folder") as scratch:
            (scratch / "a").write_text("half")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "old"

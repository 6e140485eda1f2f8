"""Full and read-only disks: one line with the path and the fix, and no file that is half written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import cepo.tiny
from cepo.cli import main
from cepo.errors import StorageError
from cepo.net.files import append_lines, check_writable, make_folder, open_log, replace_file, replace_folder
from cepo.run.folder import RunDir
from cepo.run.lines import Lines
from cepo.service import adapters
from cepo.service.adapters import FILES
from tests.helpers.disks import fill, read_only, small_disk

LARGE = bytes(2**19)
FULL = "cannot be written: No space left on device; free space on its disk, then start again"


def _save_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(cepo.tiny.path())
    with replace_folder(folder) as scratch:
        model.save_pretrained(scratch)


def _save_tensors(folder: Path) -> None:
    with replace_folder(folder) as scratch, (scratch / "state.pt").open("wb") as file:
        torch.save({"weights": torch.zeros(2**18)}, file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "file": lambda disk: replace_file(disk / "file", LARGE),
    "lines": lambda disk: append_lines(disk / "file", b"x" * 2**19 + b"\n"),
    "adapter": lambda disk: adapters.write(disk / "folder", dict.fromkeys(FILES, LARGE)),
    "checkpoint": lambda disk: _save_tensors(disk / "folder"),
    "model": lambda disk: _save_model(disk / "folder"),
}


def _state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _begin(disk: Path) -> None:
    """Something to lose: an old version of everything that the writers write."""
    replace_file(disk / "file", b"old\n")
    with replace_folder(disk / "folder") as scratch:
        for name in (*FILES, "state.pt"):
            (scratch / name).write_bytes(b"old")


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_every_file_keeps_its_content(tmp_path: Path, name: str) -> None:
    with small_disk(tmp_path / "disk") as disk:
        _begin(disk)
        ballast = fill(disk)
        before = _state(disk)
        with pytest.raises(StorageError, match=rf"^{disk}/(file|folder) {FULL}"):
            WRITERS[name](disk)
        assert _state(disk) == before
        ballast.unlink()
        append_lines(disk / "file", b"new\n")
        assert (disk / "file").read_bytes() == b"old\nnew\n"


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_read_only_disk_the_fix_is_another_folder(tmp_path: Path, name: str) -> None:
    with small_disk(tmp_path / "disk") as disk:
        _begin(disk)
        before = _state(disk)
        with read_only(disk), pytest.raises(StorageError, match="Read-only file system; give a folder on a disk"):
            WRITERS[name](disk)
        assert _state(disk) == before


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Within the block no file of this process may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["file", "lines", "adapter", "checkpoint"])
def test_a_write_that_is_cut_short_leaves_the_old_content(tmp_path: Path, name: str) -> None:
    """Runs on every machine: a limit of the file size cuts the write where a full disk would."""
    _begin(tmp_path)
    before = _state(tmp_path)
    with limited(2**16), pytest.raises(StorageError, match=rf"^{tmp_path}/(file|folder) cannot be written: File too"):
        WRITERS[name](tmp_path)
    assert _state(tmp_path) == before


def test_a_line_that_was_cut_short_is_removed_before_the_next(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = Lines(file)
    append_lines(file, b'{"step": 0}\n')
    for cut in (b'{"step": 1, "rew', b"x" * 200_000):
        with file.open("ab") as torn:
            torn.write(cut)
        assert rows.refresh() == [{"step": 0}]
    append_lines(file, b'{"step": 1}\n')
    assert rows.refresh() == [{"step": 0}, {"step": 1}]
    file.write_bytes(b"no newline")
    append_lines(file, b'{"step": 0}\n')
    assert file.read_bytes() == b'{"step": 0}\n'


def test_a_path_that_cannot_be_made_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "inside"
    for write in (
        lambda: make_folder(inside),
        lambda: replace_file(inside, b""),
        lambda: append_lines(inside, b"\n"),
        lambda: open_log(inside),
        lambda: adapters.write(inside, dict.fromkeys(FILES, b"")),
        lambda: check_writable(inside),
    ):
        with pytest.raises(StorageError, match=rf"^{inside}\S* cannot be written: Not a directory; give another path"):
            write()


def test_a_device_is_written_in_place_and_a_link_keeps_its_target(tmp_path: Path) -> None:
    replace_file(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
    (tmp_path / "link").symlink_to("target")
    replace_file(tmp_path / "link", "caf\u00e9")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text("utf-8") == "caf\u00e9"


def test_the_mode_of_a_secret_file_never_allows_others(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        replace_file(tmp_path / "key", b"secret", mode=0o600)
    finally:
        os.umask(previous)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_run_folder_on_a_read_only_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk") as disk, read_only(disk):
        assert main(["certs", str(disk / "certificates")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"cepo: {disk}/certificates cannot be written: Read-only file system; give a folder on")
        run = RunDir(disk / "run")
        with pytest.raises(StorageError, match=rf"^{disk}/run/metrics.jsonl cannot be written"):
            run.append({"step": 0})


def test_the_launcher_names_the_full_disk_of_a_process_that_could_not_log_it(tmp_path: Path) -> None:
    from cepo.run.child import Child

    with small_disk(tmp_path / "disk") as disk:
        ballast = fill(disk)
        script = "import sys; print('x' * 100_000, file=sys.stderr)"
        child = Child("rollout", [sys.executable, "-c", script], {}, disk / "rollout.log")
        child.start()
        assert child.process is not None
        assert child.process.wait(60) != 0
        with pytest.raises(StorageError, match=rf"^{disk} {FULL}"):
            child.check()
        ballast.unlink()
        check_writable(disk)
        assert [path.name for path in disk.iterdir()] == ["rollout.log"]


def test_a_service_on_a_full_disk_ends_in_seconds_with_status_2(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom cepo.net.files import replace_file\n"
        "from cepo.service.chassis import mistakes_told\n"
        "with mistakes_told('trainer'):\n    replace_file(Path(sys.argv[1]), bytes(2**21))\n"
    )
    with small_disk(tmp_path / "disk") as disk:
        command = [sys.executable, "-c", script, str(disk / "status.json")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"cepo trainer: {disk}/status.json {FULL}")
        fill(disk)
        with (disk / "log").open("wb") as log:  # the line cannot be logged either
            assert subprocess.run(command, stderr=log, timeout=60).returncode == 2


def test_metrics_that_are_cut_anywhere_are_read_up_to_the_cut(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in range(3):
        run.append({"step": step})
    whole = run.metrics.read_bytes()
    for size in range(len(whole)):
        run.metrics.write_bytes(whole[:size])
        assert run.rows() == [json.loads(line) for line in whole[:size].split(b"\n")[:-1]]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_files_of_a_folder_have_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors writes files that only their owner can read."""
    previous = os.umask(umask)
    try:
        with replace_folder(tmp_path / "folder") as scratch:
            os.close(os.open(scratch / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(previous)
    assert (tmp_path / "folder" / "weights").stat().st_mode & 0o777 == mode

"""Regenerates cepo/pb from proto/. `--check` writes nothing and exits 1 when the checked-in code is stale."""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "cepo" / "pb"
PACKAGE = "cepo.pb."


def generate(out: Path) -> list[Path]:
    """Writes the message, stub and gRPC modules of every proto file under `out`."""
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{ROOT}", *outputs, *protos]) != 0:
        sys.exit("protoc failed")
    written = sorted((out / "cepo" / "v1").glob("*.py*"))
    for path in written:
        text = path.read_text().replace("from cepo.v1 import", f"from {PACKAGE}cepo.v1 import")
        path.write_text(text)
    return written


def main() -> None:
    if "--check" not in sys.argv:
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        kept = TARGET / "cepo" / "v1"
        stale = [p.name for p in fresh if not (kept / p.name).exists() or not filecmp.cmp(p, kept / p.name, False)]
    if stale:
        sys.exit(f"cepo/pb is stale ({', '.join(stale)}): run `make proto`")


if __name__ == "__main__":
    main()

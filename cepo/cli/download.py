"""`python -m cepo.cli.download RUN.toml`: downloads the model of a run into the Hugging Face cache.

Containers run this before an engine starts, so that engines that share the cache download nothing and a download counts
against no start-up probe. Processes that run it at the same time wait for each other: the cache locks each file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cepo.errors import Unreachable, UserError
from cepo.prompts.renderer import require_model
from cepo.run import file as runfile

FILES = ("*.jinja", "*.json", "*.model", "*.safetensors", "*.txt")
"""What Transformers and vLLM read of a repository."""
OTHERS = ("consolidated*", "onnx/*", "original/*")
"""Second copies of the weights in other formats."""


def download(file: Path) -> str:
    """Downloads what the cache lacks of `model.path`; without a network, a cached model is used as it is.

    Returns:
        One line that says where the model is.

    Raises:
        UserError: the run file is wrong, or there is no such model, or the token gives no access to it.
        Unreachable: the Hub does not answer, and the cache does not hold the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    path = runfile.load(file).model.path
    require_model(path)
    if Path(path).is_dir():
        return f"model: {path} is a folder; nothing is downloaded"
    try:
        folder = snapshot_download(path, allow_patterns=list(FILES), ignore_patterns=list(OTHERS))
    except LocalEntryNotFoundError as error:
        raise Unreachable(f"model.path={path} is not in the cache, and the Hub does not answer") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(
            f"model.path={path}: {str(error).splitlines()[0]}; give a folder or a Hugging Face name, and "
            "HF_TOKEN for a gated model"
        ) from error
    return f"model: {path} is in {folder}"


if __name__ == "__main__":
    try:
        print(download(Path(sys.argv[1])), flush=True)
    except (UserError, Unreachable) as error:
        print(f"cepo: {error}", file=sys.stderr)
        sys.exit(2)

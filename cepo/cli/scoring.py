"""Token credit in this process, without a service: behind `cepo credit` and `cepo.credit(...)`."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

import cepo.tiny
from cepo.cli.credit_files import with_images
from cepo.credit import MAX_TOKENS, CreditReply, CreditRequest
from cepo.credit.decisive import with_rlsd
from cepo.errors import UserError, first_mistake
from cepo.messages.groups import BASE_POLICY, PolicyRef, RolloutGroup, ScoredGroup
from cepo.net.settings import Settings
from cepo.service import adapters
from cepo.service.adapters import AdapterCache, Engine
from cepo.service.image_cache import no_images

if TYPE_CHECKING:
    from cepo.prompts.renderer import Renderer
    from services.teacher.credit import TokenCredit

Score = Callable[[CreditRequest], Awaitable[CreditReply]]


def credit(sent: Mapping[str, Any], model: str | None, adapter: str | Path | None) -> CreditReply:
    """The credit of a request, with RLSD beside CEPO; the model stays loaded for the next call.

    Args:
        sent: the fields of the request.

    Raises:
        UserError: a field of the request, the model or the adapter does not fit.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which draws no bar here
    try:
        request = CreditRequest.model_validate(sent)
    except ValidationError as error:
        raise UserError(first_mistake(error.errors(), unnamed="the request")) from error
    request = with_images(request, Path())
    name = model or str(cepo.tiny.path())
    policy, files = read_adapter(None if adapter is None else Path(adapter), "adapter=")
    return _Resident.of(name, policy, files).credit(with_rlsd(request.model_copy(update={"policy": policy})))


def read_adapter(folder: Path | None, option: str) -> tuple[PolicyRef, dict[str, bytes]]:
    """The policy and the files of an adapter's folder; without one, the base model.

    Args:
        option: the beginning of the message, such as "--adapter ".

    Raises:
        UserError: the folder holds no adapter.
    """
    if folder is None:
        return BASE_POLICY, {}
    try:
        files = adapters.read(folder)
    except OSError as error:
        raise UserError(f"{option}{folder}: no {' and '.join(adapters.FILES)} there") from error
    return PolicyRef(version=1, sha256=adapters.digest(files)), files


@contextlib.asynccontextmanager
async def scoring(
    model: str, policy: PolicyRef, files: dict[str, bytes], is_graded: Callable[[Any], bool]
) -> AsyncIterator[Score]:
    """Loads a model and yields the function that scores requests with it.

    The graders start while the libraries of the model are imported.

    Args:
        is_graded: takes the grading function and says whether a request will need it.
    """
    from cepo.prompts.renderer import Renderer
    from services.verifier.handler import Verifier
    from services.verifier.pool import GraderPool

    async def grade(group: RolloutGroup) -> ScoredGroup:
        await starting
        return await Verifier(pool).verify(group)

    async with contextlib.AsyncExitStack() as stack:
        with word(f"loading {Path(model).name}"):
            renderer = Renderer(model)
            pool = GraderPool(workers=1)
            stack.callback(pool.close)
            starting = asyncio.create_task(pool.start() if is_graded(grade) else asyncio.sleep(0))
            stack.push_async_callback(asyncio.wait, [starting])  # a process that is about to start is closed too
            await asyncio.sleep(0)  # lets the task start the process
            score = await _scorer(stack, model, renderer, policy, files, grade)
        yield score


@contextlib.contextmanager
def word(text: str) -> Iterator[None]:
    """Shows on a terminal what the command does; nothing is written elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(text):
        yield


class _Resident:
    """A model that stays loaded, with an event loop in a thread: a notebook has a loop in its own."""

    _kept: tuple[Any, _Resident] | None = None
    """The last one and what it was made with."""

    @classmethod
    def of(cls, model: str, policy: PolicyRef, files: dict[str, bytes]) -> _Resident:
        """The last one if it has this model and policy; otherwise a new one that replaces it."""
        key = (model, policy)
        if cls._kept is None or cls._kept[0] != key:
            if cls._kept is not None:
                cls._kept[1].close()
                cls._kept = None
            cls._kept = (key, cls(model, policy, files))
        return cls._kept[1]

    def __init__(self, model: str, policy: PolicyRef, files: dict[str, bytes]) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="cepo.credit", daemon=True).start()
        self._stack = contextlib.AsyncExitStack()
        entered = self._stack.enter_async_context(scoring(model, policy, files, lambda grade: True))
        try:
            self._score = self._run(entered)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        atexit.register(self.close)

    def credit(self, request: CreditRequest) -> CreditReply:
        return self._run(self._score(request))

    def close(self) -> None:
        atexit.unregister(self.close)
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _scorer(
    stack: contextlib.AsyncExitStack,
    model: str,
    renderer: Renderer,
    policy: PolicyRef,
    files: dict[str, bytes],
    grade: Callable[[RolloutGroup], Awaitable[ScoredGroup]],
) -> TokenCredit:
    """The function behind `POST /v1/credit`, with the model loaded; the stack closes what it uses."""
    import tempfile

    from transformers import AutoConfig

    from cepo.model.rope import positions
    from cepo.teaching.engine import TransformersScorer
    from services.teacher.credit import TokenCredit
    from services.teacher.images import GivenImages

    async def fetch(wanted: PolicyRef) -> dict[str, bytes]:
        if wanted != policy:
            raise UserError(f"policy: {wanted.name} is not loaded; give its folder with --adapter")
        return files

    settings = Settings(model=model, dtype="float32", device=_device())
    given = GivenImages(no_images)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    scorer = TransformersScorer(settings, renderer, AdapterCache(folder, fetch, keep=2), given.read)
    stack.callback(scorer.close)
    await _load(scorer, policy)
    longest = positions(AutoConfig.from_pretrained(model)) or MAX_TOKENS
    return TokenCredit(scorer, renderer, longest, grade, given)


async def _load(engine: Engine, policy: PolicyRef) -> None:
    from safetensors import SafetensorError

    try:
        await engine.load(policy)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--adapter: not a LoRA adapter of this model ({type(error).__name__}: {reason})") from error


def _device() -> Any:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

"""A trainer of several processes: `engine.trainer_processes` on this machine, or those that torchrun started.

Rank 0 is the service, and starts the others itself where torchrun did not. They end with it and it with them, so that
whoever keeps the trainer alive starts all of them again.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from tempfile import mkdtemp

import torch

from cepo.errors import UserError
from cepo.net.processes import die_with_parent
from cepo.net.settings import Place, Settings, child_environment, stay_on_loopback
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.service import chassis
from cepo.service.telemetry import configure_logging
from services.trainer.learning.learner import Learner
from services.trainer.learning.ranks import ALONE, TORCHRUNS, Peers, Ranks

log = logging.getLogger(__name__)


def lead(folder: RunDir, config: RunConfig) -> Ranks:
    """Rank 0 of a run's processes, once all are there.

    Raises:
        UserError: torchrun started several, which this run cannot have.
    """
    size, place = config.engine.trainer_processes, Place.from_environment()
    if place is None and size == 1:
        return ALONE
    if place is not None:
        if place.size > 1 and config.engine.teacher == "colocated":
            raise UserError(
                f'engine.teacher="colocated" scores on the whole base, which the {place.size} processes of torchrun '
                'split between them; set it to "service"'
            )
        ranks = Peers(place)
    else:
        stay_on_loopback()
        scratch = mkdtemp()
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        meeting = f"file://{scratch}/ranks"  # no port that others could speak to
        for rank in range(1, size):
            _start(folder, Place(rank, rank, size), meeting)
        ranks = Peers(Place(0, 0, size), meeting)
    ranks.gathered(config)
    return ranks


def follow(folder: RunDir, place: Place, meeting: str = TORCHRUNS) -> None:
    """The whole life of a process of a higher rank. It hears from rank 0 alone, and reads the run's images.

    Args:
        meeting: where the processes find each other, as torch.distributed has it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 drains, then lets it end
    settings = Settings.from_environment("trainer")
    configure_logging("trainer", settings.log_level)
    ranks = Peers(place, meeting)
    config = ranks.gathered(None)[0]
    assert isinstance(config, RunConfig)
    try:
        learner = make_learner(config, folder, Renderer(config.model.path), ranks, settings)
    except UserError as error:
        log.error("process %d of %d: %s", place.rank + 1, place.size, error)
        ranks.part()
        sys.exit(2)
    sys.exit(ranks.follow(learner))


def make_learner(config: RunConfig, folder: RunDir, renderer: Renderer, ranks: Ranks, settings: Settings) -> Learner:
    """The learner of one process; the threads of the service are shared out.

    Raises:
        UserError: as Learner's.
    """
    if settings.threads:
        torch.set_num_threads(max(1, settings.threads // ranks.size))
    store = ImageStore(folder.images)
    return Learner(config, lambda image: renderer.pixels.patches(image, store.read(image)), ranks)


def _start(folder: RunDir, place: Place, meeting: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.trainer", str(folder.path), meeting],
        env=child_environment(place.to_environment()),
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    threading.Thread(target=partial(_watch, process, place), daemon=True).start()


def _watch(process: subprocess.Popen[bytes], place: Place) -> None:
    """Ends this process when one of its own ends, which would leave it waiting for good."""
    code = process.wait()
    if code in (0, 2, chassis.STOPPED):  # 2: a mistake of the user's, which this process meets and reports as well
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log.error(
        "process %d of %d %s; the trainer ends, and goes on from its newest checkpoint when it is started again",
        place.rank + 1,
        place.size,
        how,
    )
    os._exit(1)

"""Starts and connects the processes of a trainer, if it has several.

There are `engine.trainer_processes` of them on one machine, or those that torchrun started, on one machine or several.
Rank 0 is the service. Without torchrun it starts the others itself: each runs `python -m services.trainer RUN_DIR
INIT_METHOD` and ends when rank 0 does, and rank 0 exits when one of them dies. A supervisor therefore watches rank 0
alone, and starting it again starts all of them again.

    rank 0                                        rank 1
    start_ranks(folder, config)             -->   serve_rank(folder, place, init_method)
      all_gather(config)                    <->     all_gather(None)[0]   # the run's config
    make_learner(...)                       <->     make_learner(...)     # every rank shards the same model
    train(run, ...)                         -->     ranks.serve(learner)  # makes the calls of rank 0
    ranks.close(code)                       -->     exits with that code
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
from cepo.net.environment import child_environment, stay_on_loopback
from cepo.net.processes import die_with_parent
from cepo.net.settings import Settings
from cepo.net.torchrun import Place
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.service import chassis
from cepo.service.telemetry import configure_logging
from services.trainer.learning.learner import Learner
from services.trainer.learning.ranks import SINGLE, TORCHRUN, DistributedRanks, Ranks

log = logging.getLogger(__name__)


def start_ranks(folder: RunDir, config: RunConfig) -> Ranks:
    """The ranks of a run as rank 0 has them; starts the other processes, and waits until all are connected.

    Raises:
        UserError: the teacher is colocated, and torchrun started several processes.
    """
    size, place = config.engine.trainer_processes, Place.from_environment()
    if place is None and size == 1:
        return SINGLE
    if place is not None:
        if place.size > 1 and config.engine.teacher == "colocated":
            raise UserError(
                f'engine.teacher="colocated" scores on the whole base, which the {place.size} processes of torchrun '
                'split between them; set it to "service"'
            )
        ranks = DistributedRanks(place)
    else:
        stay_on_loopback()
        scratch = mkdtemp()
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        init_method = f"file://{scratch}/ranks"  # a file, since other users of the machine could connect to a port
        for rank in range(1, size):
            _start(folder, Place(rank, rank, size), init_method)
        ranks = DistributedRanks(Place(0, 0, size), init_method)
    ranks.all_gather(config)
    return ranks


def serve_rank(folder: RunDir, place: Place, init_method: str = TORCHRUN) -> None:
    """Runs a process of rank 1 or higher until rank 0 closes, then exits.

    The process takes the config and every call from rank 0. Of the run folder it reads the images only.

    Args:
        init_method: where the processes meet, as in torch.distributed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 handles them: it ends the current step, then the other ranks
    settings = Settings.from_environment("trainer")
    configure_logging("trainer", settings.log_level)
    ranks = DistributedRanks(place, init_method)
    config = ranks.all_gather(None)[0]
    assert isinstance(config, RunConfig)
    try:
        learner = make_learner(config, folder, Renderer(config.model.path, config.data.template), ranks, settings)
    except UserError as error:
        log.error("process %d of %d: %s", place.rank + 1, place.size, error)
        ranks.leave()
        sys.exit(2)
    sys.exit(ranks.serve(learner))


def make_learner(config: RunConfig, folder: RunDir, renderer: Renderer, ranks: Ranks, settings: Settings) -> Learner:
    """The learner of one process, which uses its share of the service's threads.

    Raises:
        UserError: as `Learner` raises it.
    """
    if settings.threads:
        torch.set_num_threads(max(1, settings.threads // ranks.size))
    store = ImageStore(folder.images)
    return Learner(config, lambda image: renderer.pixels.patches(image, store.read(image)), ranks)


def _start(folder: RunDir, place: Place, init_method: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.trainer", str(folder.path), init_method],
        env=child_environment(place.to_environment()),
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    threading.Thread(target=partial(_watch, process, place), daemon=True).start()


def _watch(process: subprocess.Popen[bytes], place: Place) -> None:
    """Ends this process when another rank dies, since it would wait for that rank in a collective forever."""
    code = process.wait()
    if code in (0, 2, chassis.STOPPED):  # 2: invalid user input, which rank 0 finds and reports as well
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log.error(
        "process %d of %d %s; the trainer exits, and resumes from its newest checkpoint when it is started again",
        place.rank + 1,
        place.size,
        how,
    )
    os._exit(1)

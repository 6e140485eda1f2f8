"""Trains with TRL's GRPOTrainer in TRL's own virtual environment: `python _trl.py TASK.json`.

`train.py` writes the task. The last line printed is the result as JSON. The script imports nothing of the project.

Generation is that of transformers, TRL's default. TRL's vLLM modes need a GPU: on the CPU, vLLM packs the weights when
it loads them, and cannot load TRL's new weights afterwards ("'Parameter' object has no attribute 'weight_loader'",
vLLM 0.32). Gradient checkpointing, TRL's default, is off because it costs time. The batch is a single micro-batch. The
reward is TRL's accuracy reward (math-verify), or the share of digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward


class Clock(TrainerCallback):
    """Records when each step ended, and the seconds of its parts."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.parts: dict[str, list[float]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        for seconds in self.parts.values():
            seconds.append(0.0)

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that adds its seconds to a part of the current step."""
        seconds = self.parts.setdefault(name, [0.0])

        def run(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                seconds[-1] += time.perf_counter() - begun

        run.__name__ = name
        return run


def digits(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """The share of digits in each completion."""
    texts = [messages[0]["content"] for messages in completions]
    return [sum(letter.isdigit() for letter in text) / max(1, len(text)) for text in texts]


REWARDS: dict[str, Callable[..., Any]] = {"accuracy": accuracy_reward, "digits": digits}


def settings(options: SimpleNamespace, folder: str) -> GRPOConfig:
    """The run's settings as TRL has them."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=options.samples * options.prompts,
        num_generations=options.samples,
        max_completion_length=options.max_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",  # the token mean, as in the run file
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=options.steps,
        shuffle_dataset=False,
        seed=options.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def main() -> None:
    """Trains; prints the seconds and the mean response length of every step but the first, which warms up."""
    options = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(options.threads)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=options.model,
            reward_funcs=clock.timed("reward", REWARDS[options.reward]),
            args=settings(options, folder),
            train_dataset=Dataset.from_list(options.rows),
            peft_config=LoraConfig(
                r=options.rank, lora_alpha=options.alpha, target_modules=options.targets, task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer._generate = clock.timed("rollout", trainer._generate)
        trainer.train()
    seconds = [end - begun for begun, end in zip(clock.ends, clock.ends[1:], strict=False)]
    parts = {f"{name}_seconds": part[1:-1] for name, part in clock.parts.items()}
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    print(json.dumps({"step_seconds": seconds, **parts, "response_tokens": lengths[1:]}))  # noqa: T201 read by the benchmark


if __name__ == "__main__":
    main()

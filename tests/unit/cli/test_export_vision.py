"""transformers loads a merged vision-language model with its image processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cepo.cli import main
from cepo.messages.groups import ImageRef
from cepo.model.forward import load_causal_lm, response_logps
from cepo.model.vision import image_features
from cepo.prompts.pixels import Patches, Pixels
from cepo.run.folder import RunDir
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config
from tests.helpers.vision import MODEL, RENDERER, TURN, held_out, ids_of


def test_a_merged_model_scores_images_as_the_adapter_does(tmp_path: Path) -> None:
    (_, image) = held_out(1)[0]

    def patches(ref: ImageRef) -> Patches:
        return image.patches

    run = RunDir(tmp_path / "run")
    config = make_config(f"model.path={MODEL}", "model.dtype='float32'")
    run.create(config, resume=False)
    learner = Learner(config, patches)
    for parameter in learner.parameters:
        torch.nn.init.constant_(parameter, 0.02)
    folder = run.adapters / "v000001"
    folder.mkdir()
    for name, data in learner.adapter_files().items():
        (folder / name).write_bytes(data)
    out = str(tmp_path / "merged")
    assert main(["export", str(run.path), out, "--merge"]) == 0
    inputs = ([RENDERER.prompt_ids(TURN, [image.ref])], [ids_of("13+15=28")], 1.0)
    whole = load_causal_lm(out, "float32", "cpu")
    seen = image_features(whole, Pixels(out).patches(image.ref, image.data))
    with torch.no_grad():
        adapted = response_logps(learner.peft.get_base_model(), *inputs, [[image.features]])
        merged = response_logps(whole, *inputs, [[seen]])
        base = response_logps(load_causal_lm(MODEL, "float32", "cpu"), *inputs, [[image.features]])
    assert merged[0].tolist() == pytest.approx(adapted[0].tolist(), abs=1e-4)
    assert merged[0].tolist() != pytest.approx(base[0].tolist(), abs=1e-2)

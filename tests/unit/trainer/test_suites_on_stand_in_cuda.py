"""The suites of learner, publisher, auxiliary models and teacher, run again on a stand-in CUDA device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.stand_in_cuda import engines_on_stand_in
from tests.unit.teaching import test_teacher, test_together
from tests.unit.trainer import test_auxiliary, test_learner, test_publisher

pytestmark = pytest.mark.nightly
COMPARE_WITH_THE_CPU = {
    "test_log_probs_and_their_gradient_equal_a_full_softmax",
    "test_later_mini_batches_use_the_old_log_probs_of_the_steps_start",
    "test_the_gap_to_the_engine_is_a_mean_over_the_trained_tokens",
    "test_the_weights_of_the_present_student_are_measured_as_the_loss_saw_them",
    "test_the_published_adapter_is_the_policys_alone_and_loads_in_stock_peft",
    "test_every_published_folder_loads_in_stock_peft_with_the_learners_log_probs",
    "test_values_and_their_gradient_are_those_of_a_plain_forward_under_the_critics_adapter",
}
"""Tests that give the model tensors of the CPU, or compare its tensors with such."""
learner = test_publisher.learner
base, published = test_teacher.base, test_teacher.published


@pytest.fixture(scope="module", autouse=True)
def _stand_in() -> Iterator[None]:
    with engines_on_stand_in():
        yield


for suite in (test_learner, test_publisher, test_auxiliary, test_teacher, test_together):
    for name, test in vars(suite).items():
        if name.startswith("test_") and callable(test) and name not in COMPARE_WITH_THE_CPU:
            globals()[f"{name}_on_cuda"] = test

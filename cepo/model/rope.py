"""The positions of a model, and LongRoPE's factors, chosen as vLLM chooses them.

A model with LongRoPE (Phi-3.5, Phi-4-mini) has two lists of factors for its rotary frequencies: short ones for
sequences within `original_max_position_embeddings`, and long ones. transformers chooses by the longest sequence of each
pass. vLLM chooses once, by the longest sequence that the engine allows, because cached keys must not change while a
sequence grows. With transformers' rule, a trainer with `model.max_length` above the original length would score short
sequences with other frequencies than the engine sampled them with, about one nat a token apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def positions(config: Any) -> int:
    """The length of the model's longest sequence, beyond which learned positions end; 0 if its config does not say."""
    options = config.get_text_config().to_dict()
    return int(options.get("max_position_embeddings") or options.get("n_positions") or 0)


def rope_sections(config: Any) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a model's text part: one section, or one for each type of layer."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        yield from (value for value in parameters.values() if isinstance(value, dict) and value)
    elif parameters:
        yield parameters


def long_from(config: Any) -> int:
    """The length above which vLLM takes LongRoPE's long factors; 0 for a model without LongRoPE."""
    fallback = getattr(config.get_text_config(), "original_max_position_embeddings", None) or 0
    sections = [section for section in rope_sections(config) if section.get("rope_type") == "longrope"]
    return max((section.get("original_max_position_embeddings") or fallback for section in sections), default=0)


def choose_factors(config: Any, max_length: int) -> None:
    """Replaces the short factors by the long ones, in place, if the engine would take the long ones.

    Args:
        config: a transformers configuration from which the model is then built.
        max_length: the longest sequence of the run; 0 changes nothing.
    """
    if 0 < long_from(config) < max_length:
        for section in rope_sections(config):
            if section.get("rope_type") == "longrope":
                section["short_factor"] = section["long_factor"]

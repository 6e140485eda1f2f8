"""The tiny model that sees: a Qwen3-VL of 2.5 million parameters whose language part starts as the tiny text model.

Both see the same tokens and, in text, the same rotary positions, so the text weights fit as they are; four tokens for
images are added at the end of the vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from cepo import tiny

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PATCH = 8
"""Pixels; four patches make a token."""
MIN_PIXELS, MAX_PIXELS = 32 * 32, 160 * 160


def path() -> Path:
    """Folder of the shipped model, as `from_pretrained` and vLLM load it."""
    return Path(__file__).parent / "vision_model"


def tokenizer() -> PreTrainedTokenizerFast:
    """The text model's, with the tokens of images."""
    found = AutoTokenizer.from_pretrained(tiny.path())
    found.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    found.chat_template = CHAT_TEMPLATE
    return found


def image_processor() -> Qwen2VLImageProcessorPil:
    """Images to patches; sizes are multiples of two patches."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A randomly initialised vision part before the trained text model."""
    text = Qwen3ForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32)
    text.config._name_or_path = ""  # a folder of this machine, which would be written into the new model
    language: dict[str, Any] = text.config.to_dict() | {
        "model_type": "qwen3_vl_text",
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": text.config.rope_parameters["rope_theta"],
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    config = Qwen3VLConfig(
        text_config=language,
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": language["hidden_size"],
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [1, 2],
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config)
    weights = text.model.state_dict()
    embedding = model.get_input_embeddings().weight.detach().clone()
    embedding[: text.config.vocab_size] = weights["embed_tokens.weight"]
    model.model.language_model.load_state_dict(weights | {"embed_tokens.weight": embedding})
    return model


def save_processor(out: Path) -> None:
    """Writes what `AutoProcessor` and vLLM read beside the weights and the tokenizer."""
    image_processor().save_pretrained(out)

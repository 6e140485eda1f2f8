"""The tiny vision-language model: a Qwen3-VL with 2.5 million parameters, initialised from the tiny text model.

Both have the same tokens and, in text, the same rotary positions, so the text weights can be used unchanged. Four
tokens for images are added at the end of the vocabulary.
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
"""Side of a patch in pixels; an image token stands for four patches."""
MIN_PIXELS, MAX_PIXELS = 32 * 32, 160 * 160


def path() -> Path:
    """Folder of the shipped model, as `from_pretrained` and vLLM load it."""
    return Path(__file__).parent / "vision_model"


def tokenizer() -> PreTrainedTokenizerFast:
    """The text model's tokenizer with the image tokens."""
    loaded = AutoTokenizer.from_pretrained(tiny.path())
    loaded.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    loaded.chat_template = CHAT_TEMPLATE
    return loaded


def image_processor() -> Qwen2VLImageProcessorPil:
    """The image processor; it resizes images to multiples of two patches."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A randomly initialised vision part in front of the trained text model."""
    text = Qwen3ForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32)
    text.config._name_or_path = ""  # otherwise this machine's path is saved with the new model
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


def save_processor(scratch: Path) -> None:
    """Adds the image processor's configuration, which `AutoProcessor` and vLLM read, to a folder being written."""
    image_processor().save_pretrained(scratch)

"""What the tiny configurations of all families have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ovlt.config import BaseConfig


def tiny_text(
    base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rows: int, mrope_section: list[int]
) -> dict[str, object]:
    """Return the table of the decoder."""
    return {
        "vocab_size": rows,
        "hidden_size": base.hidden,
        "intermediate_size": base.intermediate,
        "num_hidden_layers": base.layers,
        "num_attention_heads": base.heads,
        "num_key_value_heads": base.kv_heads,
        "max_position_embeddings": 4096,
        "initializer_range": base.initializer_range,
        "rms_norm_eps": 1e-6,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": base.tie_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": base.rope_theta,
            "mrope_section": mrope_section,
        },
    }


def tiny_tower(base: BaseConfig) -> dict[str, object]:
    """Return the table of the tower."""
    return {
        "depth": base.vision_depth,
        "hidden_size": base.vision_hidden,
        "intermediate_size": base.vision_intermediate,
        "num_heads": base.vision_heads,
        "out_hidden_size": base.hidden,
        "initializer_range": base.initializer_range,
    }


def tiny_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids of the tokens that stand for images and videos."""
    ids = tokenizer.get_vocab()
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }

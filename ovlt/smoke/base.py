"""A base model from nothing, for the smoke world: ``python -m ovlt.smoke.base RECIPE``.

A seeded Qwen2.5-VL configuration of one to five million parameters, a byte-level BPE tokenizer
trained on the spot that carries Qwen's special tokens, and the image processor, saved as an
ordinary Hugging Face folder. ``ovlt sft`` then teaches it to see (captions, short answers,
text-only reasoning), so that it is where a pretrained model is: it can describe an image and knows
nothing of the task's format.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils import logging

from ovlt.config import BaseConfig
from ovlt.config.load import load_recipe
from ovlt.data.worlds.synthetic import vocabulary_corpus
from ovlt.system.files import read_json, swap_folder, write_json

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Ordinary tokens that are never split: one token each keeps a tiny model's responses short.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# ChatML with Qwen's image markup. No default system line: a tiny model pays for every token.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words, single digits, punctuation runs, white space: numbers must never merge into one token.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
ROW_MULTIPLE = 16  # embedding rows are padded to this, so ids beyond the tokenizer exist, as Qwen's


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of ``corpus``, which encodes every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(QWEN_TOKENS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["user\nassistant\nsystem\n"] * 1000  # part of every sample, though not of any text
    tokenizer.train_from_iterator([*corpus, *roles], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in QWEN_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    # Not Qwen2TokenizerFast: it would put Qwen's own pre-tokenizer in place of ours, and " 3" would
    # be two tokens.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of the vocabulary
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token=None,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def tiny_config(base: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Return a small configuration with the structure of the real one. Raises ValueError."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_TOKENS}
    rows = -(-(len(tokenizer) + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    head = base.hidden // base.heads
    if head % 32 or base.hidden % base.heads or base.heads % base.kv_heads:
        raise ValueError(
            f"[base] hidden={base.hidden}, heads={base.heads}, kv_heads={base.kv_heads}: kv_heads "
            "must divide heads, and the head dimension (hidden / heads) must be a multiple of 32, "
            "as vLLM's attention on a CPU asks"
        )
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": rows,
            "hidden_size": base.hidden,
            "intermediate_size": base.intermediate,
            "num_hidden_layers": base.layers,
            "num_attention_heads": base.heads,
            "num_key_value_heads": base.kv_heads,
            "max_position_embeddings": 4096,
            "initializer_range": base.initializer_range,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": base.tie_embeddings,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": base.rope_theta,
                # time, height, width share the head's frequencies as 1 : 1.5 : 1.5, as Qwen's do
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
        },
        vision_config={
            "depth": base.vision_depth,
            "hidden_size": base.vision_hidden,
            "intermediate_size": base.vision_intermediate,
            "num_heads": base.vision_heads,
            "out_hidden_size": base.hidden,
            "fullatt_block_indexes": [base.vision_depth - 1],
            "window_size": 112,
            "initializer_range": base.initializer_range,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=base.tie_embeddings,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )


def make_folder(target: Path, base: BaseConfig, corpus: Iterable[str]) -> None:
    """Write an untrained model folder; the same arguments give the same bytes of weights."""
    tokenizer = train_tokenizer(corpus, base.vocab_size)
    config = tiny_config(base, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
    )
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of "Writing model shards": there is one
    model.save_pretrained(partial)
    if shows_bars:
        logging.enable_progress_bar()
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(partial)
    # The processor's file alone is not enough for AutoImageProcessor on every transformers we run.
    processor.image_processor.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    swap_folder(partial, target)


def ensure_untrained(base: BaseConfig) -> Path:
    """Return the untrained folder of [base], made unless it is there for these settings."""
    target = Path(base.folder) / "untrained"
    record = Path(base.folder) / "untrained.json"
    settings = base.model_dump(mode="json")
    if target.is_dir() and record.is_file() and read_json(record) == settings:
        return target
    make_folder(target, base, vocabulary_corpus())
    write_json(record, settings)
    return target


def main() -> None:
    """Make the untrained folder of the recipe whose path is the argument; print where it is."""
    print(ensure_untrained(load_recipe(sys.argv[1]).base))


if __name__ == "__main__":
    main()

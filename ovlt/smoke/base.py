"""A base model from nothing, for the smoke world: ``python -m ovlt.smoke.base RECIPE``.

A seeded configuration of one to five million parameters, of the family that [base] names, a
byte-level BPE tokenizer trained on the spot that carries the special tokens of Qwen's models, and
the image processor, saved as an ordinary Hugging Face folder. ``ovlt sft`` then teaches it to see
(captions, short answers, text-only reasoning), so that it is where a pretrained model is: it can
describe an image and knows nothing of the task's format.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ovlt.config import BaseConfig
from ovlt.config.load import load_recipe
from ovlt.data.worlds.synthetic import vocabulary_corpus
from ovlt.model.families import family_named
from ovlt.system.files import read_json, swap_folder, write_json

SPECIAL_TOKENS = (
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
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["user\nassistant\nsystem\n"] * 1000  # part of every sample, though not of any text
    tokenizer.train_from_iterator([*corpus, *roles], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
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


def tiny_config(base: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """Return a small configuration with the structure of the real one. Raises ValueError."""
    rows = -(-(len(tokenizer) + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    head = base.hidden // base.heads
    if head % 32 or base.hidden % base.heads or base.heads % base.kv_heads:
        raise ValueError(
            f"[base] hidden={base.hidden}, heads={base.heads}, kv_heads={base.kv_heads}: kv_heads "
            "must divide heads, and the head dimension (hidden / heads) must be a multiple of 32, "
            "as vLLM's attention on a CPU asks"
        )
    return family_named(base.family).model.tiny(base, tokenizer, rows)


def make_folder(target: Path, base: BaseConfig, corpus: Iterable[str]) -> None:
    """Write an untrained model folder; the same arguments give the same bytes of weights."""
    tokenizer = train_tokenizer(corpus, base.vocab_size)
    config = tiny_config(base, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = AutoModelForImageTextToText.from_config(config)
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
    processor = family_named(base.family).model.tiny_processor(tokenizer, CHAT_TEMPLATE)
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

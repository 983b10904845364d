"""A model whose weights are written by hand: each token alone decides the next one, so that it says
"<think>two</think><answer>3</answer>" or "to", with any answer from 1 to 4, each as likely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.tiny import random_image
from PIL import Image
from safetensors.torch import load_file, save_file

from ovlt.model.load import ModelFolder, open_text_model

CHAIN = {
    "\n": ["<think>"], "<think>": ["t"], "t": ["w", "o"], "w": ["o"], "o": ["</think>"],
    "</think>": ["<answer>"], "<answer>": ["1", "2", "3", "4"],
    "1": ["</answer>"], "2": ["</answer>"], "3": ["</answer>"], "4": ["</answer>"],
}  # fmt: skip


def say_by_chain(folder: ModelFolder) -> None:
    """Overwrite the weights of a folder: the last token is all that counts for the next one."""
    (path,) = Path(folder.path).glob("*.safetensors")
    weights = load_file(path)
    embed = next(name for name in weights if name.endswith("embed_tokens.weight"))
    vocab, hidden = weights[embed].shape
    rows = torch.randn(vocab, hidden, generator=torch.Generator().manual_seed(0))
    weights[embed] = rows = rows / rows.norm(dim=1, keepdim=True)
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.zeros_like(value)
    head = torch.zeros(vocab, hidden)
    ids = folder.chat.tokenizer.convert_tokens_to_ids
    names = {"\n": "Ċ"}  # how byte-level BPE spells it
    steps = [(before, after) for before, all in CHAIN.items() for after in all]
    for before, after in [*steps, ("</answer>", folder.chat.end)]:
        head[ids(names.get(after, after))] += 10 * rows[ids(names.get(before, before))]
    weights["lm_head.weight"] = head
    save_file(weights, path, metadata={"format": "pt"})


def reader_folder(path: Path, like: ModelFolder) -> ModelFolder:
    """A language model that only reads, of Qwen2's family as QwQ is, with the tokenizer of another.
    Its chat template joins strings, as those of language models do, and with the keyword
    ``thinks`` it opens the thoughts in the prompt."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=like.text_config.vocab_size, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(1)
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(like.path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if thinks %}{{ '<think>' }}{% endif %}{% endif %}"
    )
    tokenizer.save_pretrained(path)
    return open_text_model(path)


def write_questions(path: Path, count: int) -> list[dict[str, Any]]:
    """Questions whose answers go round from 1 to 4, of two sources; images lie beside the file."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(count):
        name = f"{path.stem}-{i}.png"
        Image.fromarray(random_image(rng, 56, 28 * (1 + i % 3))).save(path.with_name(name))
        rows.append(
            {
                "problem": f"<image>How many? {i}",
                "answer": str(1 + i % 4),
                "images": [name],
                "source": ["charts", "maps"][i % 2],
                "id": f"q{i}",
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows

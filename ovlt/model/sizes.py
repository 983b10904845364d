"""What can be counted of a model from its configuration alone: tokens, parameters, FLOPs, bytes.

Imports no torch, so that a run can be planned on any machine. A ``Sizes`` is transformers'
configuration or what ``read_config`` returns. What every family counts alike is counted here; the
rest is in the family's own file, found by ``config.model_type``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Protocol, cast

from ovlt.model.families import ModelFamily, family_of, family_to_plan

Grid = tuple[int, int, int]  # (time, height, width) in patches
Checkpointing = Literal["none", "mlp", "full"]


class TextSizes(Protocol):
    """The decoder's part of a configuration, as far as all families have it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool


class VisionSizes(Protocol):
    """The vision tower's part of a configuration, as far as all families have it."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    out_hidden_size: int


class Sizes(Protocol):
    """The configuration of a model, as far as its sizes go."""

    model_type: str

    @property
    def text_config(self) -> TextSizes: ...
    @property
    def vision_config(self) -> VisionSizes: ...


class FileTextSizes(TextSizes, Protocol):
    max_positions: int  # 0 if the file does not name it


class FileSizes(Sizes, Protocol):
    """The sizes that a ``config.json`` names, and the longest text its model takes."""

    @property
    def text_config(self) -> FileTextSizes: ...


class TextConfig(TextSizes, Protocol):
    max_position_embeddings: int


class Config(Sizes, Protocol):
    """What ovlt reads of a transformers configuration."""

    image_token_id: int

    def get_text_config(self) -> TextConfig: ...


_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def read_config(path: Path, *, text_only: bool = False) -> FileSizes:
    """Read a ``config.json``, old layout (text keys at the top) or new.

    ``text_only`` also takes text models whose decoder is a family's (Qwen2.5 and its fine-tunes);
    they have no tower.

    Raises ValueError: no such file, no JSON, an unknown family, a key that is missing.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a config.json: {error}") from None
    kind = tree.get("model_type") if isinstance(tree, dict) else type(tree).__name__
    family = family_to_plan(path, kind, text_only=text_only)
    for table in ("text_config", "vision_config"):
        if not isinstance(tree.setdefault(table, {}), dict):
            raise ValueError(f"{path}: {table} is {tree[table]!r}, not a table")
    text: dict[str, object] = family.sizes.TEXT_DEFAULTS | tree | tree["text_config"]
    missing = [key for key in _TEXT_KEYS if key not in text]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: is it the whole config.json?")
    vision = dict(tree["vision_config"])
    if "in_chans" in vision:
        vision.setdefault("in_channels", vision["in_chans"])
    _check_sizes(path, text, (*_TEXT_KEYS, "max_position_embeddings"))
    _check_sizes(path, text, _whole_numbers(family.sizes.TEXT_DEFAULTS))
    _check_sizes(path, vision, _whole_numbers(family.sizes.VISION_DEFAULTS))
    vision = family.sizes.VISION_DEFAULTS | vision
    if kind != family.name:
        vision = _no_vision(family)
    sizes = SimpleNamespace(
        model_type=family.name,
        text_config=SimpleNamespace(
            **{key: text[key] for key in (*_TEXT_KEYS, *family.sizes.TEXT_DEFAULTS)},
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
            max_positions=text.get("max_position_embeddings", 0),
        ),
        vision_config=SimpleNamespace(**vision),
    )
    return cast("FileSizes", sizes)


def _no_vision(family: ModelFamily) -> dict[str, object]:
    """Return a model without a tower, in the same terms: all sizes 0, but for a divisor."""
    defaults = family.sizes.VISION_DEFAULTS
    nothing: dict[str, object] = {
        key: [] if isinstance(value, list) else 0 for key, value in defaults.items()
    }
    return nothing | {"patch_size": 1}


def _whole_numbers(defaults: Mapping[str, object]) -> list[str]:
    return [key for key, value in defaults.items() if isinstance(value, int)]


def _check_sizes(path: Path, table: Mapping[str, object], keys: Sequence[str]) -> None:
    for key in keys:
        value = table.get(key, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, not a whole number above 0")


def merged_patch(config: Sizes) -> int:
    """Return the side, in pixels, of the square of an image that becomes one token."""
    return int(config.vision_config.patch_size) * int(config.vision_config.spatial_merge_size)


def image_grid(config: Sizes, height: int, width: int) -> Grid:
    """Return the patch grid of an image whose sides are multiples of the merged patch."""
    patch = int(config.vision_config.patch_size)
    return (1, height // patch, width // patch)


def square_grid(config: Sizes, pixels: int) -> Grid:
    """Return the patch grid of a square image of about so many pixels."""
    merged = merged_patch(config)
    side = max(1, math.isqrt(pixels) // merged) * merged
    return image_grid(config, side, side)


def tokens_per_image(config: Sizes, grid: Grid) -> int:
    """Return how many placeholder tokens an image of this grid takes."""
    merge = int(config.vision_config.spatial_merge_size)
    return grid[0] * grid[1] * grid[2] // (merge * merge)


def patch_values(config: Sizes) -> int:
    """Return how many numbers a patch has: channels x frames x height x width."""
    vision = config.vision_config
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def feature_values(config: Sizes) -> int:
    """Return how many values the tower gives for each image token."""
    return family_of(config).sizes.feature_values(config)


def decoder_flops(config: Sizes, num_tokens: int, context: int = 0) -> float:
    """Return the FLOPs of one forward of the decoder's layers over ``num_tokens`` tokens.

    A multiply-add counts as two. The tokens see each other causally, and all of ``context`` tokens
    before them, whose own FLOPs are not counted here (a prompt that several responses share). Used
    to balance ranks, for MFU and for planning.
    """
    return family_of(config).sizes.decoder_flops(config, num_tokens, context)


def mlp_flops(config: Sizes, num_tokens: int) -> int:
    """Return the FLOPs of one forward of the MLP of one decoder layer over ``num_tokens`` tokens.

    The last layer's is computed for the tokens alone that carry loss (``model/on_tokens.py``).
    """
    text = config.text_config
    return 2 * 3 * num_tokens * text.hidden_size * text.intermediate_size


def head_flops(config: Sizes, rows: int) -> int:
    """Return the FLOPs of the head over ``rows`` hidden states."""
    return 2 * rows * config.text_config.hidden_size * config.text_config.vocab_size


def tower_flops(config: Sizes, grids: Sequence[Grid]) -> float:
    """Return the FLOPs of one forward of the vision tower over images with these patch grids."""
    return family_of(config).sizes.tower_flops(config, grids)


@dataclass(frozen=True)
class Parameters:
    """How many parameters each part has; FSDP gathers a block, a layer, or the root at a time."""

    tower_blocks: tuple[tuple[int, int], ...]  # (how many, parameters of one) of each kind
    tower_rest: int  # of the tower, in the root: patch embedding, merger
    layers: tuple[tuple[int, int], ...]  # (how many, parameters of one) of each kind
    norm: int
    embedding: int
    head: int  # 0 if it is the embedding

    @property
    def tower_block(self) -> int:
        """The largest group of the tower."""
        return max((size for _, size in self.tower_blocks), default=0)

    @property
    def layer(self) -> int:
        """The largest layer."""
        return max(size for _, size in self.layers)

    @property
    def tower(self) -> int:
        return sum(count * size for count, size in self.tower_blocks) + self.tower_rest

    @property
    def decoder(self) -> int:
        return sum(count * size for count, size in self.layers) + self.norm

    @property
    def root(self) -> int:
        """The group that stays gathered from forward to backward."""
        return self.tower_rest + self.norm + self.embedding + self.head

    @property
    def total(self) -> int:
        return self.tower + self.decoder + self.embedding + self.head


def parameters(config: Sizes) -> Parameters:
    """Return the exact counts, including biases and norm gains."""
    return family_of(config).sizes.parameters(config)


@dataclass(frozen=True)
class Block:
    """Bytes that the forward of one kind of block keeps for backward, per token or patch."""

    count: int  # how many blocks are of this kind
    whole: int  # one without activation checkpointing
    mlp: int  # the part of it that is between the two ends of its MLP
    input: int  # one that is recomputed as a whole


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward keeps for backward, for one token (decoder) or one patch (tower).

    With transformers' own modules, a norm keeps its input in float32, the normalised row and its
    output; attention keeps its rotated queries and keys, values, output and log-sum-exp; SwiGLU
    keeps four rows of its width. With Liger's (``model.liger``), a norm keeps its input, one number
    and its output, and SwiGLU keeps three rows.
    """

    blocks: tuple[Block, ...]  # the kinds of them
    rest: int  # outside the blocks

    def kept(self, checkpointing: Checkpointing) -> int:
        """Return the bytes of all blocks and the rest, if so much is recomputed in backward."""
        total = self.rest
        for block in self.blocks:
            each = {"none": block.whole, "mlp": block.whole - block.mlp, "full": block.input}
            total += block.count * each[checkpointing]
        return total

    def recomputed(self, checkpointing: Checkpointing) -> int:
        """Return the bytes of what is computed again at a time, in the block with most of it."""
        if checkpointing == "none":
            return 0
        return max(b.mlp if checkpointing == "mlp" else b.whole for b in self.blocks)


def decoder_activations(
    config: Sizes, itemsize: int, *, liger: bool = False, keys: float = 1.0
) -> Activations:
    """Return the bytes that the decoder keeps per token; ``itemsize`` is an activation's.

    ``keys``: keys per token; more than 1 if attention gathers those of a prompt for each response.
    """
    return family_of(config).sizes.decoder_activations(config, itemsize, liger=liger, keys=keys)


def tower_activations(config: Sizes, itemsize: int, *, liger: bool = False) -> Activations:
    """Return the bytes that the tower keeps per patch."""
    return family_of(config).sizes.tower_activations(config, itemsize, liger=liger)


def norm_and_mlp(width: int, itemsize: int, *, liger: bool) -> tuple[int, int, int]:
    """Return the bytes of an RMSNorm, of one whose output nobody keeps, and the rows SwiGLU keeps.

    For the files of families.
    """
    if liger:
        return 2 * itemsize * width + 4, itemsize * width + 4, 3
    return (4 + 2 * itemsize) * width, (4 + itemsize) * width, 4


def recomputed_share(config: Sizes, checkpointing: Checkpointing) -> float:
    """Return the share of the decoder's forward that backward computes again.

    A recomputation ends with the last tensor that backward needs, which is the input of the MLP's
    last product (torch.utils.checkpoint stops early). So that product is never done again.
    """
    text = config.text_config
    layers = parameters(config).layers  # products per token, nearly
    products = sum(count * size for count, size in layers) / sum(count for count, _ in layers)
    last = text.hidden_size * text.intermediate_size
    again = {"none": 0.0, "mlp": 2.0 * last, "full": products - last}
    return again[checkpointing] / products


def kv_bytes_per_token(config: Sizes, itemsize: int) -> int:
    """Return the bytes of one token in the engine's cache."""
    return family_of(config).sizes.kv_bytes_per_token(config, itemsize)


def state_bytes_per_sequence(config: Sizes, itemsize: int) -> int:
    """Return the bytes that the engine keeps of a running sequence, whatever its length."""
    return family_of(config).sizes.state_bytes_per_sequence(config, itemsize)


def divides(config: Sizes, gpus: int) -> bool:
    """Return whether vLLM can spread the model over ``gpus``.

    Each GPU gets whole heads; a key-value head may be on several.
    """
    text, vision = config.text_config, config.vision_config
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    whole = heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0)
    widths = (text.intermediate_size, vision.intermediate_size, vision.num_heads)
    whole = whole and all(width % gpus == 0 for width in widths)
    return whole and family_of(config).sizes.divides(config, gpus)

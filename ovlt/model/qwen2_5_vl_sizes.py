"""What can be counted of Qwen2.5-VL from its configuration alone: tokens, parameters, FLOPs, bytes.

Imports no torch, so that a run can be planned on any machine. A ``Sizes`` is transformers'
configuration or what ``read_config`` returns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Protocol, cast

Grid = tuple[int, int, int]  # (time, height, width) in patches


class TextSizes(Protocol):
    """The decoder's part of a configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool


class VisionSizes(Protocol):
    """The vision tower's part of a configuration."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    window_size: int  # pixels
    out_hidden_size: int
    fullatt_block_indexes: Sequence[int]  # blocks that see the whole image, not a window of it


class Sizes(Protocol):
    """The configuration of a model, as far as its sizes go."""

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


# transformers' values for the keys that a configuration file leaves out.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# A model without a tower, in the same terms: every size is 0, but the patch size, a divisor, is 1.
_NO_VISION = dict.fromkeys(_VISION_DEFAULTS, 0) | {"patch_size": 1, "fullatt_block_indexes": []}
_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def read_config(path: Path, *, text_only: bool = False) -> FileSizes:
    """Read a ``config.json`` of this family, old layout (text keys at the top) or new.

    ``text_only`` also takes the family's text models (Qwen2.5 and its fine-tunes), which have the
    same decoder and no tower.

    Raises ValueError: no such file, no JSON, another family, a key that is missing.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a config.json: {error}") from None
    kind = tree.get("model_type") if isinstance(tree, dict) else type(tree).__name__
    families = ("qwen2_5_vl", "qwen2") if text_only else ("qwen2_5_vl",)
    if kind not in families:
        names = " and ".join(f"'{name}'" for name in families)
        raise ValueError(f"{path} describes a '{kind}' model; ovlt knows {names}")
    for table in ("text_config", "vision_config"):
        if not isinstance(tree.setdefault(table, {}), dict):
            raise ValueError(f"{path}: {table} is {tree[table]!r}, not a table")
    text = tree | tree["text_config"]
    missing = [key for key in _TEXT_KEYS if key not in text]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: is it the whole config.json?")
    vision = dict(tree["vision_config"])
    _check_sizes(path, text, (*_TEXT_KEYS, "max_position_embeddings"))
    _check_sizes(path, vision, [key for key in _VISION_DEFAULTS if key != "fullatt_block_indexes"])
    if kind != "qwen2_5_vl":
        vision = _NO_VISION
    if "in_chans" in vision:
        vision.setdefault("in_channels", vision["in_chans"])
    sizes = SimpleNamespace(
        text_config=SimpleNamespace(
            **{key: text[key] for key in _TEXT_KEYS},
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
            max_positions=int(text.get("max_position_embeddings", 0)),
        ),
        vision_config=SimpleNamespace(**(_VISION_DEFAULTS | vision)),
    )
    return cast("FileSizes", sizes)


def _check_sizes(path: Path, table: Mapping[str, object], keys: Sequence[str]) -> None:
    for key in keys:
        value = table.get(key, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, not a whole number above 0")


def merged_patch(config: Sizes) -> int:
    """Return the side, in pixels, of the square of an image that becomes one token (28)."""
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


def decoder_flops(config: Sizes, num_tokens: int, context: int = 0) -> float:
    """Return the FLOPs of one forward of the decoder's layers over ``num_tokens`` tokens.

    A multiply-add counts as two. The tokens see each other causally, and all of ``context`` tokens
    before them, whose own FLOPs are not counted here (a prompt that several responses share). Used
    to balance ranks, for MFU and for planning.
    """
    text = config.text_config
    hidden, layers = text.hidden_size, text.num_hidden_layers
    kv = hidden * text.num_key_value_heads // text.num_attention_heads
    per_token = 2 * layers * (2 * hidden * hidden + 2 * hidden * kv)
    per_token += 2 * layers * 3 * hidden * text.intermediate_size
    pairs = num_tokens * num_tokens / 2 + num_tokens * context  # of a query and a key
    return num_tokens * per_token + 4 * layers * hidden * pairs


def head_flops(config: Sizes, rows: int) -> int:
    """Return the FLOPs of the head over ``rows`` hidden states."""
    return 2 * rows * config.text_config.hidden_size * config.text_config.vocab_size


def tower_flops(config: Sizes, grids: Sequence[Grid]) -> float:
    """Return the FLOPs of one forward of the vision tower over images with these patch grids.

    Attention counts every window or, in the full-attention blocks, the whole image.
    """
    vision = config.vision_config
    total = 0.0
    vh, merge = vision.hidden_size, vision.spatial_merge_size
    full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    window = (vision.window_size // vision.patch_size) ** 2
    for grid in grids:
        patches = grid[0] * grid[1] * grid[2]
        block = 2 * (4 * vh * vh + 3 * vh * vision.intermediate_size)
        embed = 2 * vh * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        wide = vh * merge * merge
        merger = 2 * (wide * wide + wide * vision.out_hidden_size) / (merge * merge)
        total += patches * (vision.depth * block + embed + merger)
        keys = full * (grid[1] * grid[2]) + (vision.depth - full) * min(window, patches)
        total += 4 * vh * patches * keys  # q k^T and its product with v, over all blocks
    return total


@dataclass(frozen=True)
class Parameters:
    """How many parameters each part has; FSDP gathers a block, a layer, or the root at a time."""

    tower_block: int  # one of tower_blocks
    tower_blocks: int
    tower_rest: int  # patch embedding and merger
    layer: int  # one of layers
    layers: int
    norm: int
    embedding: int
    head: int  # 0 if it is the embedding

    @property
    def tower(self) -> int:
        return self.tower_blocks * self.tower_block + self.tower_rest

    @property
    def decoder(self) -> int:
        return self.layers * self.layer + self.norm

    @property
    def root(self) -> int:
        """The group that stays gathered from forward to backward."""
        return self.tower_rest + self.norm + self.embedding + self.head

    @property
    def total(self) -> int:
        return self.tower + self.decoder + self.embedding + self.head


def parameters(config: Sizes) -> Parameters:
    """Return the exact counts, including biases and norm gains."""
    text, vision = config.text_config, config.vision_config
    h, inner = text.hidden_size, text.intermediate_size
    kv = h * text.num_key_value_heads // text.num_attention_heads
    attention = (h * h + h) + 2 * (h * kv + kv) + h * h
    v, wide = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mlp = 2 * (v * vision.intermediate_size + vision.intermediate_size)
    mlp += vision.intermediate_size * v + v
    merger = v + (wide * wide + wide) + (wide * vision.out_hidden_size + vision.out_hidden_size)
    embedding = text.vocab_size * h
    return Parameters(
        tower_block=(3 * v * v + 3 * v) + (v * v + v) + mlp + 2 * v,
        tower_blocks=vision.depth,
        tower_rest=patch * v + merger,
        layer=attention + 3 * h * inner + 2 * h,
        layers=text.num_hidden_layers,
        norm=h,
        embedding=embedding,
        head=0 if text.tie_word_embeddings else embedding,
    )


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward keeps for backward, for one token (decoder) or one patch (tower).

    With transformers' own modules, a norm keeps its input in float32, the normalised row and its
    output; attention keeps its rotated queries and keys, values, output and log-sum-exp; SwiGLU
    keeps four rows of its width. With Liger's (``model.liger``), a norm keeps its input, one number
    and its output, and SwiGLU keeps three rows.
    """

    block: int  # one layer or block without activation checkpointing
    mlp: int  # the part of it that is between the two ends of its MLP
    input: int  # one layer or block that is recomputed as a whole
    blocks: int  # how many
    rest: int  # outside the blocks

    def kept(self, checkpointing: Literal["none", "mlp", "full"]) -> int:
        """Return the bytes of all blocks and the rest, if so much is recomputed in backward."""
        each = {"none": self.block, "mlp": self.block - self.mlp, "full": self.input}
        return self.blocks * each[checkpointing] + self.rest


def decoder_activations(
    config: Sizes, itemsize: int, *, liger: bool = False, keys: float = 1.0
) -> Activations:
    """Return the bytes that the decoder keeps per token; ``itemsize`` is an activation's.

    ``keys``: keys per token; more than 1 if attention gathers those of a prompt for each response.
    """
    text = config.text_config
    h, b = text.hidden_size, itemsize
    kv = h * text.num_key_value_heads // text.num_attention_heads
    norm, last, rows = _norm_and_mlp(h, b, liger)
    attention = round(b * (2 * h + 2 * kv * keys)) + 4 * text.num_attention_heads
    return Activations(
        block=2 * norm + attention + rows * b * text.intermediate_size,
        mlp=rows * b * text.intermediate_size,
        input=b * h,
        blocks=text.num_hidden_layers,
        rest=last + 2 * b * (h // text.num_attention_heads),  # and cosines and sines
    )


def tower_activations(config: Sizes, itemsize: int, *, liger: bool = False) -> Activations:
    """Return the bytes that the tower keeps per patch.

    Its values are a view of the joint query-key-value row, so the whole row stays in memory.
    """
    vision = config.vision_config
    v, b = vision.hidden_size, itemsize
    norm, _, rows = _norm_and_mlp(v, b, liger)
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    attention = (2 + 3 + 1) * b * v + 4 * vision.num_heads
    return Activations(
        block=2 * norm + attention + rows * b * vision.intermediate_size,
        mlp=rows * b * vision.intermediate_size,
        input=b * v,
        blocks=vision.depth,
        rest=b * patch + norm + 2 * b * v + 8 * (v // vision.num_heads),
    )


def _norm_and_mlp(width: int, b: int, liger: bool) -> tuple[int, int, int]:
    """Return the bytes of a norm, of one whose output nobody keeps, and the rows SwiGLU keeps."""
    if liger:
        return 2 * b * width + 4, b * width + 4, 3
    return (4 + 2 * b) * width, (4 + b) * width, 4


def recomputed_share(config: Sizes, checkpointing: Literal["none", "mlp", "full"]) -> float:
    """Return the share of the decoder's forward that backward computes again.

    A recomputation ends with the last tensor that backward needs, which is the input of the MLP's
    last product (torch.utils.checkpoint stops early). So that product is never done again.
    """
    text = config.text_config
    products = parameters(config).layer  # per token, nearly
    last = text.hidden_size * text.intermediate_size
    again = {"none": 0.0, "mlp": 2.0 * last, "full": products - last}
    return again[checkpointing] / products


def kv_bytes_per_token(config: Sizes, itemsize: int) -> int:
    """Return the bytes of one token in the engine's cache: a key and a value row in each layer."""
    text = config.text_config
    kv = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    return 2 * text.num_hidden_layers * kv * itemsize

"""All that ovlt knows about Qwen2.5-VL: placeholders, M-RoPE positions, tower call, cost, names.

Another family is another file with the same functions. transformers' own modules do the
arithmetic; this file decides what they are called with. ``packed_forward`` is bound on the
transformers root module, so FSDP2's hooks on the root fire round it and the head's weight is
gathered exactly while the loss needs it. What can be counted without torch (tokens, parameters,
FLOPs, bytes) stands in ``qwen2_5_vl_sizes``, and is known here too.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovlt.model import attention
from ovlt.model.batch import PackedBatch
from ovlt.model.qwen2_5_vl_sizes import Grid, tokens_per_image
from ovlt.model.qwen2_5_vl_sizes import forward_flops as forward_flops
from ovlt.model.qwen2_5_vl_sizes import image_grid as image_grid
from ovlt.model.qwen2_5_vl_sizes import merged_patch as merged_patch
from ovlt_kernels.linear_logp import HeadOutput, linear_logp
from ovlt_kernels.linear_loss import linear_loss

MODEL_TYPE = "qwen2_5_vl"  # as config.json spells it

# Tokens that stand for pixels. A policy that samples one breaks the match between placeholders and
# features, so the engine never may, and the trainer's normaliser leaves them out.
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def banned_ids(config: Any, tokenizer: Any) -> list[int]:
    """Ids that sampling may never produce: vision placeholders and rows beyond the tokenizer."""
    vision = [tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS]
    beyond = range(len(tokenizer), int(config.text_config.vocab_size))
    return sorted({i for i in vision if i is not None} | set(beyond))


def mrope_positions(token_ids: np.ndarray, grids: Sequence[Grid], config: Any) -> np.ndarray:
    """M-RoPE positions [3, tokens] of one sample, starting at 0 (Qwen2-VL, section 2.1).

    Text advances all three rows together; an image holds time still, spreads height and width over
    the merged grid, and the text after it starts at the largest position so far plus one.

    Raises ValueError when the placeholders do not match the images.
    """
    merge = int(config.vision_config.spatial_merge_size)
    is_image = token_ids == int(config.image_token_id)
    expected = sum(tokens_per_image(config, g) for g in grids)
    if int(is_image.sum()) != expected:
        raise ValueError(
            f"{int(is_image.sum())} image placeholder tokens for {len(grids)} images that need "
            f"{expected}: was an image or its placeholder cut away?"
        )
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    at, next_position = 0, 0
    for start, grid in zip(_image_starts(is_image, grids, config), grids, strict=True):
        text = np.arange(start - at) + next_position
        positions[:, at:start] = text
        next_position += start - at
        t, h, w = grid[0], grid[1] // merge, grid[2] // merge
        count = t * h * w
        axes = np.indices((t, h, w)).reshape(3, count)
        positions[:, start : start + count] = axes + next_position
        next_position += max(h, w)  # a still image: its single frame adds nothing in time
        at = start + count
    positions[:, at:] = np.arange(len(token_ids) - at) + next_position
    return positions


def _image_starts(is_image: np.ndarray, grids: Sequence[Grid], config: Any) -> list[int]:
    where = np.flatnonzero(is_image)
    starts, used = [], 0
    for grid in grids:
        count = tokens_per_image(config, grid)
        run = where[used : used + count]
        if run[-1] - run[0] != count - 1:
            raise ValueError("the placeholder tokens of an image are not contiguous")
        starts.append(int(run[0]))
        used += count
    return starts


@functools.lru_cache(maxsize=4096)
def _grid_plan(
    grid: Grid, merge: int, window: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """One image: patch positions [P,2], window order of its merged tokens, lengths of its windows.

    ``window`` is counted in merged tokens. Patches come in blocks of merge x merge, as the image
    processor lays them out; windows are read row by row and may be ragged at the right and bottom.
    """
    t, h, w = grid
    rows, columns = np.indices((h, w))
    blocks = (h // merge, merge, w // merge, merge)
    positions = np.stack(
        [x.reshape(blocks).transpose(0, 2, 1, 3).ravel() for x in (rows, columns)], axis=-1
    )
    mh, mw = h // merge, w // merge
    index = np.arange(mh * mw).reshape(mh, mw)
    order, lengths = [], []
    for top in range(0, mh, window):
        for left in range(0, mw, window):
            cell = index[top : top + window, left : left + window].ravel()
            order.append(cell)
            lengths.append(len(cell) * merge * merge)
    one_frame = np.concatenate(order)
    frames = np.concatenate([one_frame + f * mh * mw for f in range(t)])
    return np.tile(positions, (t, 1)), frames, tuple(lengths) * t


def vision_plan(grids: Sequence[Grid], config: Any) -> dict[str, Any]:
    """What the tower would otherwise compute with Python loops and device syncs in each forward."""
    vision = config.vision_config
    merge = int(vision.spatial_merge_size)
    window = int(vision.window_size) // merge // int(vision.patch_size)
    positions, order, windows, frames = [], [], [], []
    offset = 0
    for grid in grids:
        p, o, lengths = _grid_plan(grid, merge, window)
        positions.append(p)
        order.append(o + offset)
        windows.extend(lengths)
        frames.extend([grid[1] * grid[2]] * grid[0])
        offset += len(o)
    return {
        "position_ids": torch.from_numpy(np.concatenate(positions)),
        "window_index": torch.from_numpy(np.concatenate(order)),
        "cu_window_seqlens": _cumulative(windows),
        "cu_seqlens": _cumulative(frames),
        "max_window_seqlen": max(windows),
        "max_seqlen": max(frames),
    }


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


# --- names -------------------------------------------------------------------------------------
# transformers keeps the hub's old names on disk and other ones in memory.
_TO_DISK = (("model.language_model.", "model."), ("model.visual.", "visual."))


def disk_name(live: str) -> str:
    """Name of a live parameter in a Hugging Face folder."""
    for ours, theirs in _TO_DISK:
        if live.startswith(ours):
            return theirs + live.removeprefix(ours)
    return live


def live_name(disk: str) -> str:
    """Name in memory of a tensor of a Hugging Face folder, old style or new."""
    if disk.startswith(("model.language_model.", "model.visual.", "lm_head.")):
        return disk
    for ours, theirs in reversed(_TO_DISK):
        if disk.startswith(theirs):
            return ours + disk.removeprefix(theirs)
    return disk


# --- forward -----------------------------------------------------------------------------------
Objective = Callable[[HeadOutput, PackedBatch], Any]


def packed_forward(
    self: Any, batch: PackedBatch, objective: Objective | None = None, by_row: bool = False
) -> Any:
    """Tower, decoder, head and loss over one packed batch, on its own device.

    Every call runs the tower, with a 2 x 2-patch dummy tied in by zero where the batch holds no
    image, so no rank ever misses a collective. Only rows that carry loss reach the head.
    Returns ``objective(head_output, batch)``, or the HeadOutput itself. With ``by_row`` the
    objective is a sum over rows, each of its own log-prob and entropy: its gradient is then made in
    this forward, block by block, without the logits being made a second time (``linear_loss``).
    """
    if self.config.text_config._attn_implementation != attention.TEXT_ATTENTION:
        raise RuntimeError(
            "the model's attention implementation was changed to "
            f"'{self.config.text_config._attn_implementation}' after bind(): packed samples would "
            "attend to each other; some code shares this model's config object"
        )
    model = self.model
    hidden = model.language_model.embed_tokens(batch.input_ids)  # [T,H]
    if batch.patches is not None:
        assert batch.feature_index is not None
        assert batch.vision_plan is not None
        features = model.visual(
            batch.patches, grid_thw=batch.grid_thw, **batch.vision_plan
        ).pooler_output
        slots = (batch.input_ids == self.config.image_token_id).nonzero()[:, 0]
        features = features.index_select(0, batch.feature_index)  # a group shares its images
        hidden = hidden.index_copy(0, slots, features.to(hidden.dtype))
    else:
        width = model.visual.patch_embed.proj.weight[0].numel()
        dummy = torch.zeros(4, width, device=hidden.device)
        grid = torch.tensor([[1, 2, 2]], device=hidden.device)
        plan = _dummy_plan(self.config, hidden.device)
        features = model.visual(dummy, grid_thw=grid, **plan).pooler_output
        hidden = hidden + 0.0 * features.sum().to(hidden.dtype)
    out = model.language_model(
        inputs_embeds=hidden[None],
        position_ids=batch.position_ids[:, None],
        use_cache=False,
        ovlt_cu=batch.cu_seqlens,
        ovlt_max_len=batch.max_len,
    )
    rows = out.last_hidden_state[0].index_select(0, batch.loss_index)  # [R,H]
    options = {
        "temperature": self.ovlt_temperature,
        "logits_dtype": self.ovlt_logits_dtype,
        "banned_ids": self.ovlt_banned_ids,
    }
    if objective is None or not by_row:
        head = linear_logp(rows, self.lm_head.weight, batch.labels, **options)
        return head if objective is None else objective(head, batch)
    loss, head = linear_loss(
        rows,
        self.lm_head.weight,
        batch.labels,
        lambda some, block: objective(some, batch.rows(block)).loss,
        **options,
    )
    return replace(objective(head, batch), loss=loss)  # its sums and maxima are of all rows


def _dummy_plan(config: Any, device: torch.device) -> dict[str, Any]:
    plan = vision_plan([(1, 2, 2)], config)
    return {
        k: attention.to_device(v, device) if isinstance(v, Tensor) else v for k, v in plan.items()
    }


def _linear_patch_embed(self: Any, patches: Tensor) -> Tensor:
    """The Conv3d whose stride equals its kernel is a matrix product over ready patches."""
    weight = self.proj.weight
    return F.linear(patches.to(weight.dtype), weight.view(weight.shape[0], -1))


def bind(
    model: nn.Module,
    *,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    logits_dtype: torch.dtype | None = None,
) -> None:
    """Turn a transformers Qwen2.5-VL into one that takes PackedBatch. Names and shapes stay."""
    attention.register()
    any_model: Any = model
    any_model.set_attn_implementation({"text_config": attention.TEXT_ATTENTION})
    # Set after construction: a name with "flash" in it is otherwise looked up as a package.
    any_model.config.vision_config._attn_implementation = attention.VISION_ATTENTION
    embed = any_model.model.visual.patch_embed
    embed.forward = types.MethodType(_linear_patch_embed, embed)
    any_model.ovlt_temperature = temperature
    any_model.ovlt_logits_dtype = logits_dtype
    device = next(model.parameters()).device
    any_model.ovlt_banned_ids = (
        torch.tensor(banned, dtype=torch.int64, device=device) if banned else None
    )
    any_model.forward = types.MethodType(packed_forward, model)

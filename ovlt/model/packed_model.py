"""PackedModel: a model on packed batches; tower, decoder, head and loss in one forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ovlt.model import attention
from ovlt.model.batch import PackedBatch
from ovlt.model.families import family_of
from ovlt.model.objective import LossOutput, Objective
from ovlt.model.on_tokens import OnTokens
from ovlt.model.vision import LinearPatchEmbed, VisionPlan
from ovlt_kernels.head import HeadOptions, HeadOutput, check_ids
from ovlt_kernels.linear_logp import linear_logp
from ovlt_kernels.linear_loss import linear_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig

    from ovlt.model.sizes import Config, Grid
    from ovlt.model.vision import VisionPlan

# The kinds of rotary frequencies that are the same for every sample of a packed row. With "dynamic"
# that holds up to max_position_embeddings, and longer samples are refused.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


class PackedModel(PreTrainedModel):
    """The trained model, and the root that FSDP2 shards.

    A family's class has this one and transformers' as its bases, and is no module around it:
    parameters keep their names, so checkpoints, the weight stream to the engine and Hugging Face
    folders need no prefix, and transformers' own modules still do the arithmetic. The head and the
    loss are computed inside ``forward``, because FSDP2's hooks on the root gather the head's weight
    for exactly that long.

    Made by :func:`ovlt.model.load.empty_model` on the meta device, with attention limited to the
    samples of a packed row.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        attention.register()
        # Set after construction: transformers looks up a name with "flash" in it as a package.
        self.model.language_model.config._attn_implementation = attention.TEXT_ATTENTION
        self.model.visual.config._attn_implementation = attention.VISION_ATTENTION
        self.model.visual.patch_embed = LinearPatchEmbed(self.model.visual.patch_embed.proj)
        # Behind the last attention only the hidden states in ``loss_index`` are read.
        self._last_mlp = OnTokens(self.model.language_model.layers[-1].mlp)
        # Grid and plan of the smallest image, by device: they are copied once, which waits.
        self._smallest: dict[torch.device, tuple[Tensor, VisionPlan]] = {}
        self.set_head()

    def check_device(self, device: torch.device) -> None:
        """Raise ValueError if the boundaries of packed samples cannot be kept on ``device``."""

    def blocks(self) -> list[nn.Module]:
        """Return tower blocks and decoder layers: what is recomputed in backward."""
        return [*self.model.visual.blocks, *self.model.language_model.layers]

    def groups(self) -> list[nn.Module]:
        """Return the modules that FSDP2 gathers one at a time; the root has the rest."""
        return self.blocks()

    def tower_outputs(self, output: Any) -> tuple[Tensor, ...]:
        """Return what the decoder takes of a tower's output, [features of each image once, H] each.

        The first are added to no embedding but stand in place of them.
        """
        return (output.pooler_output,)

    def decoder_keywords(self, slots: Tensor, others: Sequence[Tensor]) -> dict[str, object]:
        """Return what the decoder is told besides the embeddings.

        ``slots``: the image placeholders, int64 [image tokens]. ``others``: ``tower_outputs`` but
        the first, gathered for these slots, [image tokens, H] each.
        """
        del slots, others
        return {}

    def set_head(
        self,
        *,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
        logits_dtype: torch.dtype | None = None,
    ) -> None:
        """Choose how logits become log-probs, as the sampling engine does (``linear_logp``).

        ``banned`` are the token ids that cannot be sampled. They go to the device of the parameters
        as they lie now, so call this after the model has left the meta device.
        """
        device = self.lm_head.weight.device
        self._banned = torch.tensor(banned, dtype=torch.int64) if banned else None  # on the host
        ids = torch.tensor(banned, dtype=torch.int64, device=device) if banned else None
        self.head_options = HeadOptions(temperature, logits_dtype, ids)

    def check_labels(self, batch: PackedBatch) -> None:
        """Raise ValueError if a label of a batch on the host is no token that can be sampled.

        The head looks at labels on a CPU only: on a GPU that would wait for the device.
        """
        check_ids(batch.labels, self._banned, self.lm_head.weight.shape[0])

    if TYPE_CHECKING:  # transformers types the parts of a config loosely, and nn.Module any call
        config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
        model: Any
        lm_head: nn.Linear

        @overload
        def __call__(self, batch: PackedBatch) -> HeadOutput: ...
        @overload
        def __call__(self, batch: PackedBatch, objective: Objective) -> LossOutput: ...
        def __call__(
            self, batch: PackedBatch, objective: Objective | None = None
        ) -> HeadOutput | LossOutput: ...

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: PackedBatch, objective: Objective | None = None
    ) -> HeadOutput | LossOutput:
        """Tower, decoder, head and loss over one packed batch, on its own device.

        Every call runs the tower, so no rank ever misses a collective, unless its features are in
        the batch: then they must be in those of all ranks. Only rows with loss reach the head.
        Returns ``objective(head_output, batch)``, or the HeadOutput itself where
        there is no objective.
        """
        decoder = self.model.language_model
        name = decoder.config._attn_implementation
        if name != attention.TEXT_ATTENTION:
            raise RuntimeError(
                f"the model's attention implementation was changed to '{name}': packed samples "
                "would attend to each other; some code shares this model's config object"
            )
        embeddings = decoder.embed_tokens(batch.input_ids)  # [T, H]
        hidden, keywords = self._with_images(embeddings, batch)
        self._last_mlp.tokens = batch.read_tokens
        hidden = decoder(
            inputs_embeds=hidden[None],  # [1, T, H]: one packed row is a batch of one
            position_ids=batch.position_ids[:, None],  # [3, 1, T]
            use_cache=False,
            ovlt_segments=batch.segments,
            **keywords,
        ).last_hidden_state[0]  # [T, H]
        if batch.segments.shared:  # a prompt's last hidden state serves all its responses
            rows = attention.gather_rows(hidden, batch.loss_index)  # [R, H]
        else:
            rows = hidden.index_select(0, batch.loss_index)  # [R, H]
        weight = self.lm_head.weight  # [V, H]
        if objective is None or not objective.by_row:
            head = linear_logp(rows, weight, batch.labels, self.head_options)
            return head if objective is None else objective(head, batch)
        loss, head = linear_loss(
            rows,
            weight,
            batch.labels,
            lambda block_head, block: objective(block_head, batch.loss_rows(block)).loss,
            self.head_options,
        )
        # `loss` carries the gradient; the sums and maxima come from one more call over all rows.
        return replace(objective(head, batch), loss=loss)

    def _with_images(self, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, object]]:
        """Put the tower's features at the image placeholders of the embeddings [T, H].

        Also returns what else the decoder is told (``decoder_keywords``).
        """
        features = batch.features
        if features is None:
            features, hidden = self._features(hidden, batch)
            if batch.wants_features:
                batch.features = tuple(x.detach() for x in features)
        if batch.feature_index is None:
            return hidden, {}
        slots, index = batch.image_slots, batch.feature_index  # [image tokens] both
        assert slots is not None
        # The samples of a group share their images: one pass of the tower serves all of them.
        # Their gradients are summed in float32.
        first, *others = (attention.gather_rows(x, index).to(hidden.dtype) for x in features)
        return hidden.index_copy(0, slots, first), self.decoder_keywords(slots, others)

    def _features(self, hidden: Tensor, batch: PackedBatch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return ``tower_outputs``, each [features of each image once, H]; and ``hidden``."""
        tower = self.model.visual
        if batch.patches is None:
            # The smallest image there is, 2 x 2 patches, tied in by zero: on every rank the tower
            # runs forward and backward, as its collectives require.
            patches = torch.zeros(4, tower.patch_embed.proj.weight[0].numel(), device=hidden.device)
            if hidden.device not in self._smallest:
                plan = vision_plan([(1, 2, 2)], self.config).to(hidden.device)
                grid = torch.tensor([[1, 2, 2]], device=hidden.device)
                self._smallest[hidden.device] = grid, plan
            grid, plan = self._smallest[hidden.device]
            outputs = self.tower_outputs(tower(patches, grid_thw=grid, **plan.keywords))
            nothing = 0.0 * torch.stack([x.sum() for x in outputs]).sum()
            return tuple(x[:0] for x in outputs), hidden + nothing.to(hidden.dtype)
        assert batch.vision_plan is not None
        output = tower(batch.patches, grid_thw=batch.grid_thw, **batch.vision_plan.keywords)
        return self.tower_outputs(output), hidden


def vision_plan(grids: Sequence[Grid], config: Config) -> VisionPlan:
    """Return the plan of one pass of the tower over images with these patch grids."""
    return family_of(config).model.vision_plan(grids, config)


def empty_model(config: Config) -> PackedModel:
    """Return a PackedModel on the meta device: names and shapes, no storage.

    On a copy of ``config``: transformers writes the attention implementation into it, and a model
    that shares the object would from then on attend across its samples, without any error.
    """
    with torch.device("meta"):
        model = family_of(config).model.MODEL._from_config(
            copy.deepcopy(config), attn_implementation="sdpa", dtype=torch.float32
        )
    model.tie_weights()
    return model


def fill_buffers(model: PackedModel, device: torch.device) -> None:
    """Recompute the rotary frequencies: no checkpoint holds them, and ``to_empty`` leaves noise.

    By transformers' own functions for the type that config.json names, with the scale of attention
    that belongs to it (YaRN). Raises ValueError for a type outside ``ROPE_TYPES``.
    """
    text = model.model.language_model.rotary_emb
    vision = model.model.visual.rotary_pos_emb
    if text.rope_type not in ROPE_TYPES:
        raise ValueError(f"rotary positions of type '{text.rope_type}' are not supported")
    compute = text.compute_default_rope_parameters
    if text.rope_type != "default":
        compute = ROPE_INIT_FUNCTIONS[text.rope_type]
    text_frequencies, text.attention_scaling = compute(text.config)  # 5.17 warns of device=
    if hasattr(vision, "compute_axial_rope_parameters"):  # transformers >= 5.19
        frequencies, _ = vision.compute_axial_rope_parameters(vision.config)
    else:
        sizes = model.config.vision_config
        head_dim = sizes.hidden_size // sizes.num_heads
        steps = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device)
        frequencies = 1.0 / (10000.0 ** (steps / (head_dim // 2)))
    for module, value in ((text, text_frequencies), (vision, frequencies)):
        module.register_buffer("inv_freq", value.to(device), persistent=False)
        if hasattr(module, "original_inv_freq"):  # what a rope with a changing scale starts from
            module.register_buffer("original_inv_freq", value.clone().to(device), persistent=False)

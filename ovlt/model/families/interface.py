"""What the two files of a family hold, as types: the modules themselves are the objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

    from ovlt.config import BaseConfig
    from ovlt.model.packed_model import PackedModel
    from ovlt.model.sizes import Activations, Config, Grid, Parameters, Sizes
    from ovlt.model.vision import VisionPlan


class FamilySizes(Protocol):
    """``NAME_sizes.py``: what can be counted of a configuration. Imports no torch.

    The functions are documented under the same names in ``ovlt/model/sizes.py``.
    """

    TITLE: str  # what people call it
    TEXT_TYPES: tuple[str, ...]  # model types of text models with this decoder: teachers
    # transformers' values for keys that config.json may leave out, besides the six that every
    # decoder has to name; what is no whole number is not checked.
    TEXT_DEFAULTS: dict[str, object]
    VISION_DEFAULTS: dict[str, object]

    def feature_values(self, config: Sizes) -> int: ...
    def decoder_flops(self, config: Sizes, num_tokens: int, context: int) -> float: ...
    def tower_flops(self, config: Sizes, grids: Sequence[Grid]) -> float: ...
    def parameters(self, config: Sizes) -> Parameters: ...
    def decoder_activations(
        self, config: Sizes, itemsize: int, *, liger: bool, keys: float
    ) -> Activations: ...
    def tower_activations(self, config: Sizes, itemsize: int, *, liger: bool) -> Activations: ...
    def kv_bytes_per_token(self, config: Sizes, itemsize: int) -> int: ...
    def state_bytes_per_sequence(self, config: Sizes, itemsize: int) -> int: ...
    def divides(self, config: Sizes, gpus: int) -> bool:
        """Return whether what only this family has can be spread over ``gpus``."""
        ...


class FamilyModel(Protocol):
    """``NAME.py``: the packed model and what belongs to it."""

    # The transformers class with PackedModel before it; its __init__ raises ValueError where the
    # boundaries of packed samples cannot be kept.
    MODEL: type[PackedModel]
    LAYER_TYPES: frozenset[str]  # that config.json may name in layer_types
    ROPE_KEYS: frozenset[str]  # keys of rope_parameters that only this family has

    def check_config(self, config: Config) -> str:
        """Say what a configuration asks that the packed model does not do; "" if nothing."""
        ...

    def vision_plan(self, grids: Sequence[Grid], config: Config) -> VisionPlan:
        """Return the plan of one pass of the tower over images with these patch grids."""
        ...

    def disk_name(self, live: str) -> str:
        """Return the name in a Hugging Face folder of a parameter of the model."""
        ...

    def live_name(self, disk: str) -> str:
        """Return the name in memory of a tensor of a Hugging Face folder."""
        ...

    def is_left_out(self, disk: str) -> bool:
        """Return whether a tensor of a folder is one that transformers leaves out too."""
        ...

    def liger_forwards(self) -> Mapping[type[nn.Module], Callable[..., object]]:
        """Return the forward of Liger's for each class of modules that has one."""
        ...

    def engine_settings(self, device: torch.device) -> dict[str, object]:
        """Return vLLM's settings that differ from those of other families on ``device``."""
        ...

    def engine_dtypes(self, device: torch.device) -> tuple[torch.dtype, ...]:
        """Return the dtypes that vLLM runs this family in on ``device``, best last."""
        ...

    def tiny(
        self, base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rows: int
    ) -> PreTrainedConfig:
        """Return a small configuration with the structure of the real one, ``rows`` embeddings.

        Raises ValueError.
        """
        ...

    def tiny_processor(
        self, tokenizer: PreTrainedTokenizerFast, chat_template: str
    ) -> ProcessorMixin:
        """Return the processor of a tiny model, which takes images of few pixels."""
        ...

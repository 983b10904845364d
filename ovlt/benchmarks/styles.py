"""How a style asks: decoding, token limit and sizes of images, each of which moves a number.

``openvlthinker``: Table 6 of the paper and its code (temperature 0.01, top_p 0.001, top_k 1, 2,048
tokens, the default pixels of Qwen's processor). ``vlmevalkit``: its defaults for Qwen2.5-VL, which
enlarge every image to a megapixel. ``official``: the authors prescribe nothing but 4,096 tokens
(EMMA, MMMU-Pro), so greedy and the model folder's own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovlt.benchmarks.items import StyleName


@dataclass(frozen=True)
class Decoding:
    """How a style samples; ``pixels`` (0, 0) leaves sizes to the model folder."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    pixels: tuple[int, int]

    @property
    def greedy(self) -> bool:
        """Whether only the most likely token can be drawn."""
        return self.temperature == 0 or self.top_k == 1


DECODING: dict[StyleName, Decoding] = {
    "official": Decoding(0.0, 1.0, 0, 4096, (0, 0)),
    "openvlthinker": Decoding(0.01, 0.001, 1, 2048, (3136, 12_845_056)),
    "vlmevalkit": Decoding(0.01, 0.001, 1, 2048, (1_003_520, 12_845_056)),
}


def pixels_within(wanted: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest and largest area of an image: the style's, inside the model folder's own.

    Outside of that range the engine's processor would resize every image again.
    """
    if wanted == (0, 0):
        return own
    low, high = (min(max(area, own[0]), own[1]) for area in wanted)
    return low, high

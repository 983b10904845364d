"""The real vLLM engine beside a real FSDP2 trainer, in one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import random_image, tiny_folder

from ovlt.config import EngineConfig, ModelConfig, RunConfig
from ovlt.model import sizes as model_sizes
from ovlt.model.load import ModelFolder
from ovlt.model.parallel import load_sharded
from ovlt.model.weights import full_weights, is_tied
from ovlt.rollout.engine import Completion, Engine, Sampling, request_seeds, sample_of
from ovlt.rollout.open import open_engine
from ovlt.rollout.sync import PROBE_SAMPLING, ProbeDifference, WeightSync
from ovlt.rollout.vllm import VllmEngine
from ovlt.system.runtime import Runtime, start
from ovlt.train.pack import collate
from ovlt.types import Prompt

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

ENGINE = EngineConfig(max_sequences=32, kv_cache_gib=0.05)
MAX_TOKENS = 464
EXACT = ProbeDifference(mean=1e-5, largest=1e-4)
MAX_PIXELS = 256 * 256
ENGINES: list[Engine] = []  # an engine that is collected takes the process group with it


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    running = start(RunConfig(device="cpu"))
    yield running
    for engine in ENGINES:
        engine.close()
    running.close()


# Engines are dear: each family has one with vLLM, tied and untied heads in turn.
CASES = ["vllm-qwen2_5_vl-untied", "vllm-qwen3_vl-tied", "transformers-qwen3_5-untied"]


@pytest.fixture(scope="module", params=CASES)
def parts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runtime: Runtime
) -> tuple[ModelFolder, Any, Engine]:
    engine_name, family, head = request.param.split("-")
    path = tmp_path_factory.mktemp("m") / "m"
    folder = tiny_folder(path, family=family, tied=head == "tied")
    config = ENGINE.model_copy(update={"backend": engine_name})
    engine = open_engine(
        folder, config, runtime, dtype=torch.float32, max_tokens=MAX_TOKENS, max_images=2,
        max_pixels=MAX_PIXELS,
    )  # fmt: skip
    model = load_sharded(
        folder, runtime.mesh, runtime.device, ModelConfig(), dtype=torch.float32, temperature=0.8
    )
    ENGINES.append(engine)
    return folder, model, engine


def prompts_of(folder: ModelFolder) -> list[Prompt]:
    rng = np.random.default_rng(3)
    prompts = []
    merged = model_sizes.merged_patch(folder.config)
    for i, tokens in enumerate([[(3, 3)], [], [(2, 5), (7, 4)], [(8, 8)] * 2]):
        sizes = [(h * merged, w * merged) for h, w in tokens]
        grids = [model_sizes.image_grid(folder.config, h, w) for h, w in sizes]
        ids = folder.chat.prompt_ids("<image>" * len(sizes) + "How many red bars?", grids)
        images = tuple(random_image(rng, h, w) for h, w in sizes)
        prompts.append(Prompt(str(i), "test", "q", "3", ids, images))
    return prompts


def perturb(model: Any, seed: int) -> None:
    """Another policy: every weight moves, the tower's too."""
    model.reshard()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            local = p.to_local()
            local += 0.05 * torch.randn(local.shape, generator=generator)


def largest_difference(folder: ModelFolder, model: Any, engine: Engine, seed: int) -> float:
    prompts = prompts_of(folder)
    out = engine.generate(
        prompts, Sampling(3, 0.8, 17), request_seeds(seed, 0, range(len(prompts)), 3)
    )
    samples = [sample_of(p, c) for p, group in zip(prompts, out, strict=True) for c in group]
    batch = collate(samples, [1.0] * len(samples), config=folder.config, patchify=folder.patchify)
    with torch.no_grad():
        head = model(batch)
    assert batch.engine_logp is not None
    return float((head.logp - batch.engine_logp).abs().max())


def test_the_cache_has_the_size_of_the_recipe(parts: tuple[ModelFolder, Any, Engine]) -> None:
    """A variable of vLLM that ovlt once set took the key's place."""
    engine = parts[2]
    if isinstance(engine, VllmEngine):
        cache = engine.llm.llm_engine.vllm_config.cache_config
        assert cache.kv_cache_memory_bytes == int(0.05 * 2**30)


def test_engine_and_trainer_agree_before_and_after_syncs(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    folder, model, engine = parts
    sync = WeightSync(engine, model, folder, tolerance=EXACT)
    assert sync().difference.within(EXACT)
    assert largest_difference(folder, model, engine, 1) <= 1e-4
    for seed in (2, 3):
        perturb(model, seed)
        assert largest_difference(folder, model, engine, seed) > 1e-2  # the old weights differ
        assert sync().difference.within(EXACT)
        assert largest_difference(folder, model, engine, seed) <= 1e-4


def test_the_probe_does_not_depend_on_the_temperature_of_the_models_head(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    """Greedy log-probs are those of temperature 1; the head keeps its own for the training."""
    folder, model, engine = parts
    before = model.head_options
    try:
        for temperature in (0.5, 1.7):
            model.set_head(temperature=temperature, banned=folder.banned)
            assert not WeightSync(engine, model, folder, tolerance=EXACT)().repeated
            assert model.head_options.temperature == temperature
    finally:
        model.head_options = before


def test_sync_notices_a_stale_engine(parts: tuple[ModelFolder, Any, Engine]) -> None:
    folder, model, engine = parts
    sync = WeightSync(engine, model, folder, tolerance=EXACT)
    sync()

    class Forgetful:
        """The real engine, but new weights never arrive."""

        def load(self, weights: Any) -> None:
            for _ in weights:
                pass

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    perturb(model, 9)
    stale = WeightSync(Forgetful(), model, folder, tolerance=EXACT)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="image probe"):
        stale()
    sync()


def test_every_tensor_is_read_back_as_it_was_sent_and_one_bit_of_one_is_noticed(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    """What no probe can see: fused, padded and packed tensors, each by the name it was sent as."""
    folder, model, engine = parts
    perturb(model, 4)
    sync = WeightSync(engine, model, folder, tolerance=EXACT, verify_every=1)
    sync()
    sent = {name: tensor.clone() for name, tensor in full_weights(model, tied_head=True)}
    for name, tensor in sent.items():
        assert torch.equal(engine.weight(name), tensor), name
    # One layer and one block stand for all; a tied head is the embedding.
    names = [name for name in sent if not re.search(r"(layers|blocks)\.0", name)]
    for name in set(names) - ({"lm_head.weight"} if is_tied(model) else set()):
        other = sent[name].clone()
        other.view(-1)[-1] = torch.nextafter(other.view(-1)[-1], torch.tensor(torch.inf))
        engine.load((sent | {name: other}).items())
        with pytest.raises(RuntimeError, match=f"rank 0 holds other values .*'{re.escape(name)}'"):
            sync.verify()
    sync()


def test_sync_notices_a_lost_name(parts: tuple[ModelFolder, Any, Engine]) -> None:
    folder, model, engine = parts
    sync = WeightSync(engine, model, folder, tolerance=EXACT)
    sync._expected = sync._expected | {"model.language_model.layers.7.mlp.up_proj.weight"}
    with pytest.raises(RuntimeError, match=r"layers\.7"):
        sync()


def test_seeds_decide_the_samples_and_nothing_else(parts: tuple[ModelFolder, Any, Engine]) -> None:
    folder, _, engine = parts
    prompts = prompts_of(folder)
    seeds = request_seeds(5, 2, range(len(prompts)), 4)

    def draw(which: list[int]) -> list[list[int]]:
        out = engine.generate(
            [prompts[i] for i in which], Sampling(4, 1.0, 9), [seeds[i] for i in which]
        )
        return [c.token_ids.tolist() for group in out for c in group]

    torch.manual_seed(123)
    state = torch.get_rng_state()
    everything = draw([0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), state)  # the trainer's generator is untouched
    assert draw([0, 1, 2, 3]) == everything
    assert draw([2]) == everything[8:12]  # not on what else is in the batch
    assert len({tuple(s) for s in everything[:4]}) == 4


def test_prompts_of_one_call_may_be_sampled_differently(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    """As the probe is, greedy and without a stop, among the prompts of a rollout."""
    folder, _, engine = parts
    prompts = [prompt for prompt in prompts_of(folder) for _ in range(3)]
    kinds = (Sampling(3, 0.8, 17), PROBE_SAMPLING, Sampling(2, 1.3, 5))
    samplings = [kinds[i % 3] for i in range(len(prompts))]
    seeds = request_seeds(5, 2, range(len(prompts)), 4)
    if not engine.mixes_greedy:  # vLLM 0.25.1 on a CPU
        with pytest.raises(RuntimeError, match="ignores the seeds"):
            engine.generate(prompts, samplings, seeds)
        return
    together = engine.generate(prompts, samplings, seeds)
    for place, answers in enumerate(together):
        [alone] = engine.generate([prompts[place]], samplings[place], [seeds[place]])
        assert len(answers) == samplings[place].n
        for one, two in zip(answers, alone, strict=True):
            assert one.token_ids.tolist() == two.token_ids.tolist()
            np.testing.assert_allclose(one.logp, two.logp, atol=1e-5)


def test_vllms_largest_image_is_the_recipes(parts: tuple[ModelFolder, Any, Engine]) -> None:
    """Its trial run on a GPU, its encoder cache and its batches are sized for that image."""
    _, _, engine = parts
    if type(engine).__name__ == "TransformersEngine":
        return  # it sizes nothing
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = engine.llm.llm_engine.vllm_config.model_config  # type: ignore[attr-defined]
    size = MULTIMODAL_REGISTRY.create_processor(config).info.get_image_size_with_most_features()
    assert 0.8 * MAX_PIXELS < size.width * size.height <= MAX_PIXELS


def test_streamed_prompts_get_the_samples_of_a_call_and_are_taken_as_there_is_room(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    folder, _, engine = parts
    prompts = [*prompts_of(folder)] * 12
    seeds = request_seeds(5, 2, range(len(prompts)), 2)
    expected = engine.generate(prompts, Sampling(2, 1.0, 9), seeds)
    taken = 0

    def source() -> Iterator[tuple[Prompt, int]]:
        nonlocal taken
        for entry in zip(prompts, seeds, strict=True):
            taken += 1
            yield entry

    torch.manual_seed(123)
    state, busy = torch.get_rng_state(), engine.busy_s
    answers: dict[int, list[Completion]] = {}
    for place, completions in engine.stream(source(), Sampling(2, 1.0, 9)):
        if not answers:
            assert taken < len(prompts)
        answers[place] = completions
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.busy_s > busy
    for place, group in enumerate(expected):
        for one, two in zip(group, answers[place], strict=True):
            assert one.token_ids.tolist() == two.token_ids.tolist()


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.001}])
def test_a_nucleus_of_one_token_is_greedy(
    parts: tuple[ModelFolder, Any, Engine], narrow: dict[str, Any]
) -> None:
    folder, _, engine = parts
    prompts = prompts_of(folder)

    def draw(temperature: float, n: int, **narrow: Any) -> list[list[list[int]]]:
        seeds = request_seeds(5, 2, range(len(prompts)), n)
        out = engine.generate(prompts, Sampling(n, temperature, 9, **narrow), seeds)
        return [[c.token_ids.tolist() for c in group] for group in out]

    greedy = draw(0.0, 1)
    assert draw(0.0, 1, **narrow) == greedy
    if type(engine).__name__ == "TransformersEngine":
        with pytest.raises(ValueError, match="top_p = 1 and top_k = 0 only"):
            draw(1.0, 2, **narrow)
    else:
        assert draw(1.0, 2, **narrow) == [group * 2 for group in greedy]


def test_banned_ids_are_never_sampled_even_if_the_model_insists(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    folder, model, engine = parts
    sync = WeightSync(engine, model, folder, tolerance=EXACT)
    sync()
    prompts = prompts_of(folder)
    out = engine.generate(prompts, Sampling(8, 2.0, 60), [100 * i for i in range(4)])
    sampled = {t for group in out for c in group for t in c.token_ids.tolist()}
    assert len(sampled) > 100
    assert not sampled & set(folder.banned)


def test_stop_token_ends_a_response_and_is_part_of_it(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    folder, _, engine = parts
    prompts = prompts_of(folder)
    out = engine.generate(prompts, Sampling(16, 2.0, 64), [100 * i for i in range(4)])
    completions = [c for group in out for c in group]
    assert any(c.finished for c in completions)
    for c in completions:
        assert c.finished == (c.token_ids[-1] == folder.chat.end_id)
        assert folder.chat.end_id not in c.token_ids[:-1]
        assert c.finished or len(c.token_ids) == 64


def test_prompts_are_taken_from_a_stream_as_there_is_room(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    """R8: images are decoded while the engine samples, and the answers are those of a list."""
    folder, _, engine = parts
    prompts = prompts_of(folder) * 20
    seeds = request_seeds(5, 0, range(len(prompts)), 2)
    sampling = Sampling(2, 0.8, 5)
    expected = engine.generate(prompts, sampling, seeds)
    taken, finished, most = 0, 0, 0

    def stream() -> Iterator[Prompt]:
        nonlocal taken
        for prompt in prompts:
            taken += 1
            yield prompt

    def counted() -> Any:
        nonlocal most, finished
        most = max(most, taken - finished)
        outputs = step()
        finished += sum(output.finished for output in outputs)
        return outputs

    inner = engine.llm.llm_engine if isinstance(engine, VllmEngine) else None
    step = inner.step if inner else None
    if inner:
        inner.step = counted
    try:
        streamed = engine.generate(stream(), sampling, seeds)
    finally:
        if inner:
            del inner.step
    assert most <= ENGINE.max_sequences // sampling.n + 8
    for group, other in zip(streamed, expected, strict=True):
        assert [c.token_ids.tolist() for c in group] == [c.token_ids.tolist() for c in other]


def test_a_prompt_that_fails_leaves_the_engine_as_it_was(
    parts: tuple[ModelFolder, Any, Engine],
) -> None:
    folder, _, engine = parts
    prompts = prompts_of(folder)

    def stream() -> Iterator[Prompt]:
        yield prompts[0]
        raise ValueError("the file of rows changed")

    sampling = Sampling(1, 0.0, 4)
    with pytest.raises(ValueError, match="changed"):
        engine.generate(stream(), sampling, [0, 0])
    [[answer]] = engine.generate(prompts[:1], sampling, [0])
    assert 1 <= len(answer.token_ids) <= 4

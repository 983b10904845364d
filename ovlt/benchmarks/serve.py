"""``ovlt serve FOLDER``: vLLM's OpenAI server on a model folder, for other harnesses.

Its flags are those that decide responses in ``ovlt evaluate``: the dtype, sizes of images, no
sampling default out of the model folder, as many images as are allowed. The client still says how
to decode. What follows ``--`` goes to vLLM as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ovlt.benchmarks.items import STYLES
from ovlt.benchmarks.registry import style_named
from ovlt.benchmarks.styles import DECODING, pixels_within
from ovlt.system import env


def main(argv: Sequence[str] | None = None) -> None:
    """Replace this process by the server."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    words, further = words[:at], words[at + 1 :]
    parser = argparse.ArgumentParser(prog="ovlt serve", description=__doc__)
    parser.add_argument("folder", type=Path, help="model folder, like runs/x/grpo/model")
    parser.add_argument("--name", default="", help="name that clients ask for (default: folder)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--style", choices=STYLES, default="official", help="its sizes of images")
    parser.add_argument("--max-tokens", type=int, default=0, help="prompt and response together")
    parser.add_argument("--max-images", type=int, default=8, help="images of one prompt")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs")
    arguments = parser.parse_args(words)
    try:
        flags = server_flags(arguments.folder, arguments, env.machine())
    except ValueError as error:
        parser.error(str(error))
    env.apply(env.machine())
    if env.machine() == "cpu":  # GiB; vLLM would take nine tenths of the memory
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Its own default: engine and server in two processes, and its log on the screen.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, *further]
    print(" ".join(command[1:]), flush=True)
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def server_flags(folder: Path, arguments: argparse.Namespace, device: env.Device) -> list[str]:
    """Return the server's flags for a model folder. Raises ValueError if it is none."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
    flags = [
        f"--model={folder}",
        f"--served-model-name={arguments.name or folder}",
        f"--host={arguments.host}",
        f"--port={arguments.port}",
        "--generation-config=vllm",
        "--seed=0",
    ]
    if arguments.max_tokens:
        flags.append(f"--max-model-len={arguments.max_tokens}")
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        own = json.loads(processor.read_text(encoding="utf-8"))
        size = own.get("size") or {}
        low = own.get("min_pixels") or size.get("shortest_edge")
        high = own.get("max_pixels") or size.get("longest_edge")
        images = {"image": arguments.max_images, "video": 0}
        flags.append(f"--limit-mm-per-prompt={json.dumps(images)}")
        if low and high:
            wanted = DECODING[style_named(arguments.style)].pixels
            low, high = pixels_within(wanted, (int(low), int(high)))
            sizes = {"size": {"shortest_edge": low, "longest_edge": high}}
            flags.append(f"--mm-processor-kwargs={json.dumps(sizes)}")
    if device == "cpu":
        return [*flags, "--dtype=float32", "--enforce-eager"]
    tensor_parallel = f"--tensor-parallel-size={arguments.tensor_parallel}"
    return [*flags, "--dtype=bfloat16", tensor_parallel]

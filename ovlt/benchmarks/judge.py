"""A judge behind an OpenAI-compatible endpoint: asynchronous, cached on disk, bounded.

A request that fails is tried again with growing pauses and then counts as unjudged; when many fail
in a row the endpoint is taken for gone, and the rest is unjudged without being asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ovlt.benchmarks.items import Ask, BenchmarkRow
from ovlt.benchmarks.judge_prompts import VERSION, wording
from ovlt.config.benchmark import JudgeConfig
from ovlt.run.record import drop_torn_tail, whole_lines

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_GONE = 20  # requests that failed in a row, all their tries, before the endpoint counts as gone
_PAUSE_S = 1.0  # before the second try; doubled for each further one
_HOTTER = 0.5  # vlmevalkit raises the temperature at each try of a row


@dataclass(frozen=True)
class JudgeRequest:
    """One request: what a rule asks about one response. ``turn`` counts the rule's calls."""

    benchmark: str
    style: str
    settings: tuple[str, ...]
    id: str
    row: BenchmarkRow
    response: str
    ask: Ask
    turn: int

    def text(self) -> tuple[str, int]:
        """The request's text, and the most tokens of its reply."""
        return wording(
            self.benchmark, self.ask.kind, self.row, self.response, self.ask.extraction,
            frozenset(self.settings),
        )  # fmt: skip

    @property
    def temperature(self) -> float:
        return _HOTTER * self.turn if self.style == "vlmevalkit" else 0.0


@dataclass
class Judge:
    """Asks an endpoint, and remembers its replies in ``cache`` (JSON lines).

    Attributes:
        asked, cached, failed: requests that were sent, were found in the cache, got no reply.
        model: the name that the endpoint is asked for.
        trouble: the last failure, "" if there was none.
    """

    config: JudgeConfig
    cache: Path
    model: str = ""
    asked: int = 0
    cached: int = 0
    failed: int = 0
    trouble: str = ""
    _replies: dict[str, str] = field(default_factory=dict)
    _failed_in_row: int = 0

    def __post_init__(self) -> None:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_tail(self.cache)
        if self.cache.exists():
            for line in whole_lines(self.cache):
                record = json.loads(line)
                self._replies[record["key"]] = record["reply"]
        self.model = self.config.model

    def check(self) -> None:
        """Find out whether the endpoint answers, before hours are spent on what it is to judge.

        Raises ValueError.
        """

        async def ask() -> None:
            async with _client(self.config) as client:
                name = await self._first_model(client)
                self.model = self.model or name

        asyncio.run(ask())

    def replies(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """Return a reply to each request, None where there is none."""
        return asyncio.run(self._all(requests))

    async def _all(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        async with _client(self.config) as client:
            if not self.model:
                self.model = await self._first_model(client)
            gate = asyncio.Semaphore(self.config.parallel)
            with self.cache.open("a", encoding="utf-8") as file:

                async def one(request: JudgeRequest) -> str | None:
                    text, max_tokens = request.text()
                    key = self._key(request, text)
                    if key in self._replies:
                        self.cached += 1
                        return self._replies[key]
                    async with gate:
                        reply, name = await self._try(client, request, text, max_tokens)
                    if reply is not None:
                        self._replies[key] = reply
                        record = {
                            "key": key, "benchmark": request.benchmark, "style": request.style,
                            "id": request.id, "kind": request.ask.kind, "turn": request.turn,
                            "model": name, "request": text, "reply": reply,
                        }  # fmt: skip
                        file.write(json.dumps(record) + "\n")
                        file.flush()
                    return reply

                return list(await asyncio.gather(*map(one, requests)))

    def _key(self, request: JudgeRequest, text: str) -> str:
        parts = (
            VERSION, self.model, request.benchmark, request.style, request.id,
            str(request.turn), text,
        )  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()

    async def _try(
        self, client: AsyncOpenAI, request: JudgeRequest, text: str, max_tokens: int
    ) -> tuple[str | None, str]:
        from openai import OpenAIError  # optional, like the client

        for attempt in range(self.config.tries):
            if self._failed_in_row >= _GONE:
                break
            if attempt:
                await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1))
            self.asked += 1
            try:
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": text}],
                    temperature=min(2.0, request.temperature),
                    max_tokens=max_tokens,
                    seed=request.turn,
                )
                content = answer.choices[0].message.content
            except (OpenAIError, ValueError, IndexError, AttributeError, TypeError) as error:
                self.trouble = f"{type(error).__name__}: {str(error)[:200]}"
                continue
            if isinstance(content, str):
                self._failed_in_row = 0
                return content, str(answer.model)
            self.trouble = "a reply without text"
        self.failed += 1
        self._failed_in_row += 1
        return None, ""

    async def _first_model(self, client: AsyncOpenAI) -> str:
        from openai import OpenAIError

        try:
            listed = await client.models.list()
            return listed.data[0].id
        except (OpenAIError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the judge at {self.config.url} does not list its models ({type(error).__name__}: "
                f"{str(error)[:200]}): is it running? evaluate.benchmark.judge.model names one"
            ) from None

    def report(self) -> str:
        """One line on what was asked."""
        line = f"judge {self.model}: {self.asked} requests, {self.cached} from the cache"
        if self.failed:
            line += f", {self.failed} unjudged ({self.trouble})"
        return line


def _client(config: JudgeConfig) -> AsyncOpenAI:
    try:  # optional: rules alone need no judge
        from openai import AsyncOpenAI
    except ImportError:
        raise ValueError(
            "a judge needs the package openai: pip install 'ovlt[eval]', or leave out "
            "evaluate.benchmark.judge.url"
        ) from None
    key = os.environ.get(config.key_variable) or "none"
    # Tries are counted here, so that every one of them is known and bounded.
    return AsyncOpenAI(base_url=config.url, api_key=key, timeout=config.timeout, max_retries=0)

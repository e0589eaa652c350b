"""What the workers' /metrics say, added up over workers and over time.

Counters begin at zero when a worker does, so what is added up is the growth between two looks, of a worker
that had the same versions in their places at both.
"""

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services.training.guard.rules import Counted

Key = tuple[str, tuple[tuple[str, str], ...]]
Samples = Mapping[Key, float]


@dataclass(frozen=True, slots=True)
class Places:
    """Which versions stand where; 0 for none."""

    champion: int
    canary: int


def read(text: str) -> Samples:
    """Each finite sample by its name and labels.

    Raises:
        ValueError: it is no exposition format.
    """
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        # A summary of nothing is not a number.
        if math.isfinite(value := float(sample.value))
    }


def places_of(samples: Samples) -> Places:
    """The versions that a worker has in their places."""
    return Places(
        int(samples.get(("weir_champion_version", ()), 0)), int(samples.get(("weir_canary_version", ()), 0))
    )


class Growth:
    """Adds up what workers count while the versions stay in their places.

    Of the champion it counts what workers do that have this champion, whatever canary they have; of the
    canary what those do that have both.

    Args:
        model: its name on Triton, under which calls are counted.
    """

    def __init__(self, model: str) -> None:
        self._who = {model: "champion", f"{model}:canary": "canary"}
        self._before: dict[str, Samples] = {}
        self.places = Places(0, 0)
        self.counted = Counted()

    def begin(self, places: Places) -> None:
        """Other versions stand there now: what was counted was of those before."""
        kept = Counted()
        if places.champion == self.places.champion:
            was = self.counted
            kept.decisions, kept.degraded = was.decisions, was.degraded
        self.places, self.counted = places, kept

    def take(self, worker: str, samples: Samples) -> None:
        """What a worker says now; the first time, and while it has another champion, nothing is added."""
        before, here = self._before.get(worker), places_of(samples)
        self._before[worker] = samples
        if before is None or not here.champion == places_of(before).champion == self.places.champion:
            return
        both = here == places_of(before) == self.places
        for key, value in samples.items():
            # Less than before: the worker has begun anew.
            grown = value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value
            if grown:
                self._add(key[0], dict(key[1]), grown, both=both)

    def _add(self, name: str, labels: Mapping[str, str], grown: float, *, both: bool) -> None:
        seen, count = self.counted, round(grown)
        if name == "weir_decisions_total" and labels.get("service") == "risk":
            seen.decisions += count
            seen.degraded += count * (labels.get("basis") == "degraded")
        elif not both:
            return
        elif name == "weir_canary_calls_total":
            seen.decided += count * (labels.get("result") == "decided")
            seen.fell_back += count * (labels.get("result") == "fell_back")
        elif name == "weir_canary_rows_total":
            seen.rows += count
        elif name == "weir_canary_outcomes_total":
            pair = labels.get("champion", ""), labels.get("canary", "")
            seen.outcomes[pair] = seen.outcomes.get(pair, 0) + count
        elif who := self._who.get(labels.get("model", "")):
            if name == "weir_model_request_duration_seconds_count":
                seen.calls[who] = seen.calls.get(who, 0) + count
            elif name == "weir_model_request_duration_seconds_sum":
                seen.seconds[who] = seen.seconds.get(who, 0.0) + grown


def name_of(worker: str) -> str:
    """A worker's address without what it may hold of a user and a password."""
    return re.sub(r"//[^/@]*@", "//", worker)


async def ask(client: httpx.AsyncClient, workers: Sequence[str]) -> dict[str, Samples | str]:
    """Each worker's samples, or in a word why there are none."""

    async def one(worker: str) -> Samples | str:
        try:
            answer = await client.get(worker)
            answer.raise_for_status()
            return read(answer.text)
        except httpx.HTTPStatusError as error:
            return f"it answered {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return str(error) or type(error).__name__
        except (ValueError, LookupError):
            # The parser raises either for what is no exposition format.
            return "it answered something else than metrics"

    return dict(zip(workers, await asyncio.gather(*map(one, workers)), strict=True))

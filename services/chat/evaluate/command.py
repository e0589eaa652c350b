"""`weir evaluate chat`: the parts that the settings name, evaluated, and told to a person."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from services.chat.evaluate.chat import evaluate
from services.chat.evaluate.pace import Pace
from services.chat.knowledge.encoding import opened
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.settings import ChatSettings
from services.chat.wiring import answerer_of, intents_of
from weir.config import TritonSettings


async def evaluate_chat(
    *,
    generate: bool,
    pii_file: Path | None,
    faq_file: Path | None,
    messages_file: Path | None,
    intents_file: Path | None,
    questions_max: int | None,
) -> dict[str, Any]:
    """See `services.chat.evaluate.chat.evaluate`.

    Raises:
        ConfigError, MissingPart: what a setting names is wrong, or not there.
        ModelUnavailable: the encoder gave no answer.
    """
    settings, knowledge, triton = ChatSettings.load(), KnowledgeSettings.load(), TritonSettings.load()
    async with AsyncExitStack() as stack:
        encoders = await stack.enter_async_context(opened(knowledge, triton))
        settings = settings.model_copy(update={"generate": generate})
        asked, pace = None if encoders is None else encoders.asked, Pace()
        return await evaluate(
            encoders=encoders,
            encoder_name=knowledge.encoder,
            answerer=await answerer_of(settings, triton, stack, pace.watched),
            turn_deadline_s=settings.turn_deadline_s,
            intents=await intents_of(settings, triton, asked, stack),
            pace=pace if generate else None,
            pii_file=pii_file,
            faq_file=faq_file,
            messages_file=messages_file,
            intents_file=intents_file,
            questions_max=questions_max,
        )


def lines_of(made: dict[str, Any], at: str = "") -> Iterator[str]:
    """Each figure in a line: shares and means with their interval and how many they are of."""
    for name, value in made.items():
        where = f"{at}{name}"
        if not isinstance(value, dict):
            yield f"{where}: {value}"
        elif {"share", "count"} <= value.keys():
            between = f"{value['low']:.3f}-{value['high']:.3f}"
            yield f"{where}: {value['share']:.3f} ({between}, n={value['count']})"
        elif {"mean", "count"} <= value.keys():
            tail = f", p95 {value['p95']}" if "p95" in value else ""
            yield (
                f"{where}: {value['mean']:.3f} ({value['low']:.3f}-{value['high']:.3f}, "
                f"n={value['count']}{tail})"
            )
        else:
            yield from lines_of(value, f"{where}.")

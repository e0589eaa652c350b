"""Read decisions as they are made; the settings come from weir.toml or WEIR_*."""

import asyncio

from weir import Decisions


async def main() -> None:
    async with Decisions.connect(purpose="delivery", group="my-service", start="beginning") as decisions:
        async for decision in decisions:
            why = "; ".join(reason.text("en") for reason in decision.reasons)
            print(decision.event_id, decision.outcome, decision.probability, why, flush=True)


asyncio.run(main())

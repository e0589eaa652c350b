"""Publish one transaction; the settings come from weir.toml or WEIR_*."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

from weir import Publisher, Transaction


async def main() -> None:
    payment = Transaction(
        event_id=str(uuid4()),
        account_id="account-1",
        terminal_id="terminal-7",
        amount=Decimal("12.50"),
        currency="EUR",
        event_time=datetime.now(UTC),
        channel="POS",
    )
    async with Publisher.connect() as bank:
        print("published at", await bank.publish(payment))


asyncio.run(main())

"""The copying worker, in whose consumer something fails that nobody expected, when it gets SIGUSR2.

python -m tests.support.crashing_worker SERVERS GROUP SOURCE TARGET [DELAY_MS] [SEEK_BACK_AT] [GUARANTEE]
"""

import asyncio
import signal
import sys
from typing import Any, cast

from tests.support.copy_worker import CopyApp
from weir.config import LogSettings
from weir.obs.log import configure
from weir.streams.engine import Engine
from weir.streams.worker import run_worker


class CrashingApp(CopyApp):
    async def open_engine(self) -> Engine:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._fail)
        return await super().open_engine()

    def _fail(self) -> None:
        self._failing = asyncio.ensure_future(cast(Any, self.consumer).crash(RuntimeError("unexpected")))


if __name__ == "__main__":
    configure(LogSettings(), service="copy")
    sys.exit(run_worker(CrashingApp(*sys.argv[1:])))

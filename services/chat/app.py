"""The chat service as a Faust application: messages in, replies out. Alone knows Faust."""

from contextlib import AsyncExitStack
from typing import Any

from services.chat.settings import ChatSettings
from services.chat.wiring import Worker, open_worker
from weir.obs.http import serve
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams.engine import Engine
from weir.streams.engine_app import EXACTLY_ONCE, EngineApp
from weir.streams.neighbours import Connections, Identity

log = get_logger("weir.chat.app")


class ChatApp(EngineApp):
    """A worker of the group `[chat] group`; opens its parts before it joins the group."""

    def __init__(self, settings: ChatSettings, to: Connections) -> None:
        self.settings, self.to = settings, to
        self.metrics = Metrics("chat")
        self.identity = Identity.of(settings.group, settings.data_dir)
        self._parts = AsyncExitStack()
        self._opened: Worker | None = None
        super().__init__(
            settings.group,
            to.topics.chat_messages,
            kafka=to.kafka,
            guarantee=EXACTLY_ONCE,
            batch_rows_max=settings.batch_rows_max,
            drain_deadline_s=settings.drain_deadline_s,
            session_timeout_s=settings.session_timeout_s,
            broker_client_id=self.identity.name,
            datadir=str(settings.data_dir),
            web_enabled=False,
        )

    async def open_engine(self) -> Engine:
        """Open every part; the partitions' conversations come with the partitions."""
        settings = self.settings
        await self._parts.enter_async_context(
            await serve(settings.metrics_host, settings.metrics_port, self._health)
        )
        self._opened = worker = await self._parts.enter_async_context(
            open_worker(settings, self.to, self.identity, self.metrics, self.source, self.give_up)
        )
        await worker.knowledge.refresh()
        log.info("chat_worker_opened", group=settings.group, knowledge=worker.knowledge.version)
        return worker.engine

    async def close_parts(self) -> None:
        """Disconnect."""
        await self._parts.aclose()

    async def _health(self) -> dict[str, Any]:
        standing = self.standing("answering")
        if self._opened is None:
            return standing
        worker = self._opened
        return {
            **standing,
            "knowledge": worker.knowledge.version,
            "generates": self.settings.generate,
            "conversations": len(worker.processor.conversations),
            "messages_in_flight": worker.engine.rows_in_flight,
        }


def create_app() -> ChatApp:
    """The application from the settings in force.

    Raises:
        ConfigError: what is wrong, and where.
    """
    return ChatApp(ChatSettings.load(), Connections.load())

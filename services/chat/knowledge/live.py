"""The knowledge in use, followed while a worker runs."""

import asyncio
from collections.abc import Sequence

from services.chat.domain import Encoder, Hit, Language
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing, KnowledgeStoreAway
from services.chat.knowledge.search import Found, HybridRetriever
from services.chat.knowledge.store import Store
from weir.obs.log import get_logger

log = get_logger(__name__)


class LiveRetriever:
    """Searches the version in use; a switch is seen with the next question, a broken one changes nothing."""

    def __init__(
        self,
        store: Store,
        encoder: Encoder | None = None,
        *,
        encoder_name: str | None = None,
        relevance_min: float | None = None,
    ) -> None:
        """See `HybridRetriever`."""
        self._store, self._encoder, self._encoder_name = store, encoder, encoder_name
        self._relevance_min = relevance_min
        self._retriever: HybridRetriever | None = None
        self._loading = asyncio.Lock()
        self._refused: str | None = None
        self._finding, self._away = "", False
        self.version: str | None = None

    async def __call__(self, question: str, language: Language, *, count: int, now_ms: int) -> Sequence[Hit]:
        """The best passages that are valid now, best first; empty when nothing answers the question."""
        return (await self.find(question, language, count=count, now_ms=now_ms)).hits

    async def find(self, question: str, language: Language, *, count: int, now_ms: int) -> Found:
        """The same, with why; `degraded` is `no_knowledge` where there is none to search."""
        await self.refresh()
        if self._retriever is None:
            return Found((), (), 1.0, "no_knowledge")
        return await self._retriever.find(question, language, count=count, now_ms=now_ms)

    async def refresh(self) -> None:
        """Open the version in use where it is another than before; questions meanwhile wait for it."""
        async with self._loading:
            name: str | None = None
            try:
                name = await asyncio.to_thread(self._store.current)
                self._away = False
                if name is None or name in (self.version, self._refused):
                    return
                # Reading and indexing take seconds for a large knowledge; other tasks go on.
                retriever = await asyncio.to_thread(self._open, name)
            except KnowledgeStoreAway as error:
                # Asked again with the next question.
                if not self._away:
                    log.error("knowledge_store_away", finding=str(error), in_use=self.version)
                self._away = True
                return
            except (KnowledgeBroken, KnowledgeMissing) as error:
                # The last good version stays; a broken one is tried again when the pointer changes.
                if str(error) != self._finding:
                    log.error("knowledge_refused", finding=str(error), in_use=self.version)
                self._refused, self._finding = name, str(error)
                return
            self._retriever, self.version, self._refused, self._finding = retriever, name, None, ""
            log.info("knowledge_loaded", version=name)

    def _open(self, name: str) -> HybridRetriever:
        return HybridRetriever(
            self._store.open(name),
            self._encoder,
            indexes=self._store.indexes(name),
            encoder_name=self._encoder_name,
            relevance_min=self._relevance_min,
        )

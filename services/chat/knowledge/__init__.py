"""The bank's knowledge: documents in versions, and the passages that answer a question."""

from services.chat.knowledge.errors import DocumentRefused, ImportRefused, KnowledgeBroken, KnowledgeMissing
from services.chat.knowledge.importer import Import, import_folder
from services.chat.knowledge.live import LiveRetriever
from services.chat.knowledge.passages import sentences
from services.chat.knowledge.search import Found, HybridRetriever, Why
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content, FolderStore, Knowledge, Store
from services.chat.knowledge.suspicious import suspicious
from services.chat.knowledge.vectors import VectorIndex

__all__ = [
    "Content",
    "DocumentRefused",
    "FolderStore",
    "Found",
    "HybridRetriever",
    "Import",
    "ImportRefused",
    "Knowledge",
    "KnowledgeBroken",
    "KnowledgeMissing",
    "KnowledgeSettings",
    "LiveRetriever",
    "Store",
    "VectorIndex",
    "Why",
    "import_folder",
    "sentences",
    "suspicious",
]

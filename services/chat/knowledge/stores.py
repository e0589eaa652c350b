"""The store that the settings name: a folder, or a database."""

from pathlib import Path

from services.chat.knowledge.folder import FolderStore
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Store


def store_of(settings: KnowledgeSettings, folder: Path | None = None) -> Store:
    """The store; `folder` goes before what the settings say. Close it.

    Raises:
        ConfigError: a database's URL or certificate is wrong.
    """
    if folder is not None or settings.database_url is None:
        return FolderStore(folder or settings.folder)
    # A folder needs no driver.
    from services.chat.knowledge.postgres import PostgresStore

    return PostgresStore(settings.database_url, settings.database_ca)

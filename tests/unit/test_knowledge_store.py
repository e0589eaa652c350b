"""A version is whole or not there, is what was written, and is followed while it is searched."""

from pathlib import Path

import numpy as np
import pytest

from services.chat.domain import Passage
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing
from services.chat.knowledge.folder import FolderStore
from services.chat.knowledge.importer import Import, import_folder
from services.chat.knowledge.live import LiveRetriever
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content, find_in

NOW = 1_780_000_000_000
SETTINGS = KnowledgeSettings.model_validate({})


async def imported(tmp_path: Path, store: FolderStore, *, use: bool = True, **documents: str) -> Import:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, text in documents.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return await import_folder(folder, store, SETTINGS, now_ms=NOW, use=use)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "kb")


async def test_an_import_that_changes_nothing_makes_no_version(tmp_path, store):
    first = await imported(tmp_path, store, cards="A card is free.")
    again = await imported(tmp_path, store, cards="A card is free.")
    assert (first.made, again.made) == (True, False)
    assert store.versions() == [first.name] == [again.name]


async def test_a_new_version_leaves_the_old_and_keeps_the_ids_of_what_did_not_change(tmp_path, store):
    first = await imported(tmp_path, store, cards="A card is free.", fees="Cash is free.")
    second = await imported(tmp_path, store, cards="A card costs EUR 5.", fees="Cash is free.")
    assert [passage.id for passage in store.open(first.name).content.passages] == ["cards@1#1", "fees@1#1"]
    assert [passage.id for passage in store.open(second.name).content.passages] == ["cards@2#1", "fees@1#1"]
    assert store.current() == second.name


async def test_a_document_that_comes_back_with_another_text_gets_another_id(tmp_path, store):
    await imported(tmp_path, store, cards="A card is free.", fees="Cash is free.")
    await imported(tmp_path, store, fees="Cash is free.")
    back = await imported(tmp_path, store, cards="A card costs EUR 5.", fees="Cash is free.")
    assert [passage.id for passage in store.open(back.name).content.passages] == ["cards@2#1", "fees@1#1"]


@pytest.mark.parametrize("file", ["passages.jsonl", "quarantine.jsonl", "manifest.json", "vectors.npy"])
def test_any_flipped_byte_is_refused(store, file):
    held = [passage("a@1#1", "Cash is free.")]
    vectors = np.ones((1, 4), np.float32) / 2
    name = store.add(Content(held, {}, (), "stand-in", vectors), NOW)
    path = store.root / name / file
    data = path.read_bytes() or b"x"
    for place in sorted({0, len(data) // 2, len(data) - 1}):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(KnowledgeBroken) as refused:
            store.open(name)
        assert "\n" not in str(refused.value)
        with pytest.raises(KnowledgeBroken):
            store.use(name)


def passage(name: str, text: str, **more: int) -> Passage:
    return Passage(name, name.partition("@")[0], 1, "en", "Fees", text, **more)


async def test_a_half_written_version_is_never_seen(tmp_path, store, monkeypatch):
    """The disk fails before the last step: what is left is no version, and the next import is whole."""
    good = await imported(tmp_path, store, cards="A card is free.")

    def fails(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="No space"):
            await imported(tmp_path, store, cards="A card costs EUR 5.")
    (store.root / ".partial-left").mkdir()
    assert store.versions() == [good.name]
    assert store.current() == good.name
    after = await imported(tmp_path, store, cards="A card costs EUR 6.")
    assert store.versions() == [good.name, after.name]


async def test_a_version_folder_without_all_its_files_is_refused(tmp_path, store):
    done = await imported(tmp_path, store, cards="A card is free.")
    (store.root / done.name / "passages.jsonl").unlink()
    with pytest.raises(KnowledgeBroken, match=r"passages\.jsonl can't be read"):
        store.open(done.name)


@pytest.mark.parametrize("said", [b"", b"../../etc", b"\xff\xfe", b"3"])
def test_a_pointer_that_names_no_version_is_refused(store, said):
    store.root.mkdir()
    (store.root / "current").write_bytes(said)
    with pytest.raises(KnowledgeBroken):
        store.current()


def test_a_version_that_is_not_there_is_said_to_be(store):
    with pytest.raises(KnowledgeMissing, match="weir knowledge list"):
        find_in(store, "7")


async def test_a_worker_follows_the_switch_and_back(tmp_path, store):
    first = await imported(tmp_path, store, cards="## Price of a card\nA card is free.")
    live = LiveRetriever(store, relevance_min=0.0)

    async def price() -> str:
        return (await live("What is the price of a card?", "en", count=1, now_ms=NOW))[0].passage.text

    assert await price() == "A card is free."
    await imported(tmp_path, store, cards="## Price of a card\nA card costs EUR 5.")
    assert await price() == "A card costs EUR 5."
    store.use(first.name)
    assert await price() == "A card is free."


async def test_a_worker_keeps_the_last_good_version_when_the_new_one_is_broken(tmp_path, store):
    good = await imported(tmp_path, store, cards="## Price of a card\nA card is free.")
    live = LiveRetriever(store, relevance_min=0.0)
    await live.refresh()
    bad = await imported(tmp_path, store, use=False, cards="## Price of a card\nA card costs EUR 5.")
    path = store.root / bad.name / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    (store.root / "current").write_text(bad.name)
    (hit,) = await live("price of a card", "en", count=1, now_ms=NOW)
    assert hit.passage.text == "A card is free."
    assert live.version == good.name


async def test_without_any_knowledge_nothing_is_found(store):
    found = await LiveRetriever(store).find("Where is my card?", "en", count=3, now_ms=NOW)
    assert (list(found.hits), found.degraded) == ([], "no_knowledge")

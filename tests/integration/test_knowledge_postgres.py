"""The knowledge in a real PostgreSQL: the same versions and answers as in a folder; what fails is told."""

import asyncio
import threading

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from infra.local.pki import ensure_pki
from services.chat.domain import Encoders, Passage
from services.chat.evaluate.retrieval import ASKED_MS, questions
from services.chat.knowledge.cli import STARTER
from services.chat.knowledge.errors import KnowledgeBroken, KnowledgeMissing, KnowledgeStoreAway
from services.chat.knowledge.folder import FolderStore
from services.chat.knowledge.importer import import_folder
from services.chat.knowledge.live import LiveRetriever
from services.chat.knowledge.postgres import DRIVER, PostgresStore
from services.chat.knowledge.search import HybridRetriever
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content, find_in
from services.chat.knowledge.stores import store_of
from services.chat.knowledge.vectors import ExactVectors
from tests.support.postgres import behind_tls
from weir.errors import ConfigError

NOW = 1_780_000_000_000
SIZE = 24


async def encoder(texts):
    """Vectors by the letters of a text."""
    rows = np.array([[sum(ord(c) % SIZE == n for c in text) for n in range(SIZE)] for text in texts])
    rows = (rows + 0.1).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def content(count: int, seed: int = 1) -> Content:
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    passages = [
        Passage(
            f"fees@1#{number}",
            "fees",
            1,
            "zh" if number % 4 == 0 else "en",
            "Fees",
            f'Cash "{number}" is \\ free \0.',
            valid_from_ms=NOW - 5 if number % 3 else None,
            valid_to_ms=NOW if number % 5 == 0 else None,
        )
        for number in range(count)
    ]
    return Content(passages, {}, (), "stand-in", vectors)


@pytest.fixture
def url(postgres):
    """A database of the test's own."""
    engine = create_engine(
        postgres.url.get_secret_value().replace("postgresql", DRIVER), isolation_level="AUTOCOMMIT"
    )
    name = f"weir_{np.random.default_rng().integers(1 << 40)}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return SecretStr(postgres.url.get_secret_value().rpartition("/")[0] + f"/{name}")


@pytest.fixture
def store(url):
    store = PostgresStore(url)
    yield store
    store.close()


def run(url: SecretStr, statement: str) -> None:
    engine = create_engine(url.get_secret_value().replace("postgresql", DRIVER))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_version_comes_back_as_it_was_written(store):
    assert (store.versions(), store.current()) == ([], None)
    held = content(700)
    name = store.add(held, NOW)
    assert (store.versions(), store.current(), find_in(store, "1")) == ([name], None, name)
    store.use(name)
    store.use(name)
    assert store.current() == name
    opened = store.open(name)
    assert list(opened.content.passages) == list(held.passages)
    assert opened.content.vectors is None
    assert (opened.manifest.encoder, opened.manifest.passages) == ("stand-in", 700)
    with pytest.raises(KnowledgeMissing):
        store.open("7-000000000000")
    with pytest.raises(KnowledgeMissing):
        find_in(store, "7")


@pytest.mark.parametrize("index_from", [1, 10_000])
async def test_the_nearest_are_those_of_every_vector_compared(url, index_from):
    store, held = PostgresStore(url, index_from=index_from), content(400)
    indexes = store.indexes(store.add(held, NOW))
    same = total = 0
    for language in ("en", "zh"):
        rows = [row for row, passage in enumerate(held.passages) if passage.language == language]
        exact = ExactVectors([held.passages[row] for row in rows], held.vectors[rows])
        for vector in content(20, seed=2).vectors:
            wanted = await exact.nearest(vector, count=10, now_ms=NOW)
            found = await indexes[language].nearest(vector, count=10, now_ms=NOW)
            assert len(found) == 10
            same += len(wanted.keys() & found.keys())
            total += 10
            for each in wanted.keys() & found.keys():
                assert found[each] == pytest.approx(wanted[each], abs=1e-5)
    # An index is near, comparing everything is exact.
    assert same == total if index_from > 1 else same > 0.95 * total
    store.close()


async def test_the_starter_set_is_searched_as_from_a_folder(store, tmp_path):
    settings, folder = KnowledgeSettings.model_validate({}), FolderStore(tmp_path / "kb")
    encoders = Encoders(encoder, encoder)
    for each in (store, folder):
        done = await import_folder(
            STARTER, each, settings, now_ms=NOW, encoder=encoders.passages, encoder_name="stand-in"
        )
        again = await import_folder(
            STARTER, each, settings, now_ms=NOW, encoder=encoders.passages, encoder_name="stand-in"
        )
        assert (done.made, again.made, again.name) == (True, False, done.name)
    retrievers = [
        HybridRetriever(
            each.open(each.current()), encoder, indexes=each.indexes(each.current()), fitted_only=False
        )
        for each in (store, folder)
    ]
    for language in ("en", "zh"):
        for judged in questions(language)[:20]:
            one, other = [
                await retriever.look(judged.question, language, now_ms=ASKED_MS) for retriever in retrievers
            ]
            assert one.by_words == other.by_words
            assert one.by_meaning[:10] == other.by_meaning[:10]
            assert one.cosines is not None


def test_imports_at_the_same_time_take_numbers_of_their_own(url):
    stores = [PostgresStore(url) for _ in range(4)]
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda store=store, n=n: names.append(store.add(content(20 + n), NOW)))
        for n, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(name.partition("-")[0] for name in names) == ["1", "2", "3", "4"]
    assert stores[0].versions() == sorted(names)
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("damage", "opens"),
    [
        ("UPDATE weir_knowledge_passage SET line = replace(line, 'free', 'dear') WHERE place = 3", False),
        ("DELETE FROM weir_knowledge_passage WHERE place = 3", False),
        ("UPDATE weir_knowledge_version SET manifest = manifest || '\\x20'::bytea", False),
        ("UPDATE weir_knowledge_version SET held = 'x'", False),
        ("UPDATE weir_knowledge_passage SET embedding = embedding * embedding WHERE place = 3", True),
        ("UPDATE weir_knowledge_passage SET embedding = NULL WHERE place = 3", True),
    ],
)
def test_a_changed_row_is_refused_before_it_is_in_use(store, url, damage, opens):
    good = store.add(content(20), NOW)
    store.use(good)
    run(url, damage)
    if opens:
        # Vectors are read whole when a version is put in use, not by every worker.
        store.open(good)
    else:
        with pytest.raises(KnowledgeBroken) as refused:
            store.open(good)
        assert "\n" not in str(refused.value)
    with pytest.raises(KnowledgeBroken):
        store.use(good)


async def test_a_worker_follows_a_switch_and_outlives_the_database(url, postgres):
    store = PostgresStore(url)
    live = LiveRetriever(store, encoder)
    assert (await live.find("cash", "en", count=3, now_ms=NOW)).degraded == "no_knowledge"
    first, second = store.add(content(20), NOW), store.add(content(30), NOW)
    for name in (first, second):
        await asyncio.to_thread(store.use, name)
        await live.find("cash", "en", count=3, now_ms=NOW)
        assert live.version == name
    # Nobody may connect any more, and whoever is there is thrown out.
    name = url.get_secret_value().rpartition("/")[2]
    run(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    run(postgres.url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    found = await live.find("cash 3 free", "en", count=3, now_ms=NOW)
    assert live.version == second
    assert found.nearest
    run(postgres.url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await asyncio.to_thread(store.use, first)
    await live.find("cash", "en", count=3, now_ms=NOW)
    assert live.version == first
    store.close()


async def test_with_the_database_gone_words_are_searched(url):
    store = PostgresStore(url)
    name = store.add(content(30), NOW)
    retriever = HybridRetriever(store.open(name), encoder, indexes=store.indexes(name), fitted_only=False)
    assert (await retriever.find("cash free", "en", count=3, now_ms=NOW)).degraded == ""
    run(url, "DROP TABLE weir_knowledge_passage")
    found = await retriever.find("cash free", "en", count=3, now_ms=NOW)
    assert found.degraded == "knowledge_store_unavailable"
    assert found.nearest
    store.close()


def test_settings_choose_it_and_what_is_wrong_is_told_in_one_line(url, tmp_path):
    settings = KnowledgeSettings.model_validate({"database_url": url})
    store = store_of(settings)
    assert isinstance(store, PostgresStore)
    assert isinstance(store_of(settings, tmp_path), FolderStore)
    assert url.get_secret_value() not in store.where
    secret = "horse-battery"
    for wrong in (f"mysql://weir:{secret}@db/weir", f"{secret}", f"postgresql:///{secret}"):
        with pytest.raises(ConfigError) as refused:
            PostgresStore(SecretStr(wrong))
        assert secret not in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="database_ca"):
        PostgresStore(url, tmp_path / "nobody.pem")
    away = PostgresStore(SecretStr(f"postgresql://weir:{secret}@127.0.0.1:1/weir"))
    with pytest.raises(KnowledgeStoreAway) as gone:
        away.current()
    assert secret not in str(gone.value)
    assert "\n" not in str(gone.value)
    other = PostgresStore(SecretStr(url.get_secret_value().replace("weir:", "weir:x")))
    with pytest.raises(KnowledgeStoreAway):
        other.versions()
    store.close()


def test_a_certificate_is_asked_for_and_must_be_of_the_named_authority(postgres, url, tmp_path):
    pki, other = ensure_pki(tmp_path / "pki"), ensure_pki(tmp_path / "other")
    with behind_tls(postgres, pki.keys_server) as port:
        safe = SecretStr(url.get_secret_value().replace(f":{postgres.port}/", f":{port}/"))
        store = PostgresStore(safe, pki.ca)
        name = store.add(content(5), NOW)
        assert store.versions() == [name]
        store.close()
        with pytest.raises(KnowledgeStoreAway):
            PostgresStore(safe, other.ca).versions()
    # A server without TLS is not spoken to in the clear.
    with pytest.raises(KnowledgeStoreAway):
        PostgresStore(url, pki.ca).versions()

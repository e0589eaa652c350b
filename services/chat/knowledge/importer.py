"""A folder of documents as a new version of the knowledge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import msgspec

from services.chat.domain import Encoder, Passage
from services.chat.knowledge.about import about, fields_of
from services.chat.knowledge.errors import DocumentRefused, ImportRefused
from services.chat.knowledge.passages import near_duplicates, passages_of
from services.chat.knowledge.read import READERS, Read, text_of
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content, DocumentEntry, Quarantined, Store
from services.chat.knowledge.suspicious import suspicious
from services.chat.knowledge.vectors import encode


@dataclass(frozen=True, slots=True)
class Import:
    """What an import came to.

    name: the version that holds the folder's content.
    made: whether it is new; False when the folder says what the last version says.
    ignored: files that are no documents.
    duplicates: pairs of passages that say nearly the same.
    """

    name: str
    made: bool
    passages: int
    documents: int
    quarantined: Sequence[Quarantined]
    duplicates: Sequence[tuple[str, str, float]]
    ignored: Sequence[str]


def read_folder(
    folder: Path, before: Mapping[str, DocumentEntry], settings: KnowledgeSettings
) -> tuple[Content, list[str]]:
    """Every document of a folder as passages, and the names of the files that are none.

    before: the documents of the version before; one whose passages did not change keeps its version.

    Raises:
        ImportRefused: no folder, nothing in it, or documents that can't be read: all of them are named.
    """
    if not folder.is_dir():
        raise ImportRefused(folder, ["there is no such folder"])
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    documents = [path for path in files if path.suffix.lower() in READERS]
    if not documents:
        raise ImportRefused(folder, [f"it holds no document ({', '.join(READERS)})"])
    if len(documents) > settings.documents_max:
        raise ImportRefused(
            folder, [f"it holds more than {settings.documents_max:,} documents (documents_max)"]
        )
    ignored = [
        str(path.relative_to(folder))
        for path in files
        if path.suffix.lower() not in (*READERS, ".about") and path.name.lower() != "readme"
    ]
    problems: list[str] = []
    passages: list[Passage] = []
    held: list[Quarantined] = []
    entries = {name: replace_entry(entry) for name, entry in before.items()}
    taken: dict[str, Path] = {}
    for path in documents:
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            if name.casefold() in taken:
                other = taken[name.casefold()].relative_to(folder)
                raise DocumentRefused(
                    str(path.relative_to(folder)),
                    f"has the same name as {other}; rename one",
                )
            taken[name.casefold()] = path
            read = _read(path, folder, settings)
            made, kept_out, entry = _document(read, name, before.get(name), settings)
        except DocumentRefused as error:
            problems.append(str(error))
            continue
        passages += made
        held += kept_out
        entries[name] = entry
        if len(passages) > settings.passages_max:
            raise ImportRefused(
                folder, [f"it holds more than {settings.passages_max:,} passages (passages_max)"]
            )
    if not passages and not problems:
        problems.append(
            "no passage is left to search" + (f" (all are kept out: one {held[0].reason})" if held else "")
        )
    if problems:
        raise ImportRefused(folder, problems)
    return Content(passages, entries, held), ignored


def replace_entry(entry: DocumentEntry) -> DocumentEntry:
    """The entry of a document that is no longer there: its number is not given again."""
    return DocumentEntry(entry.version, entry.sha256)


def _read(path: Path, folder: Path, settings: KnowledgeSettings) -> Read:
    shown = path.relative_to(folder).as_posix()
    try:
        size = path.stat().st_size
        if size > settings.file_bytes_max:
            raise DocumentRefused(
                shown,
                f"has more than {settings.file_bytes_max:,} bytes (file_bytes_max); divide it",
            )
        read = READERS[path.suffix.lower()](path.read_bytes(), shown)
        beside = path.with_name(path.name + ".about")
        said = fields_of(text_of(beside.read_bytes(), shown).split("\n"), shown) if beside.is_file() else {}
    except OSError as error:
        raise DocumentRefused(shown, f"can't be read ({error.strerror})") from None
    return Read(read.blocks, {**read.fields, **said})


def _document(
    read: Read, name: str, before: DocumentEntry | None, settings: KnowledgeSettings
) -> tuple[list[Passage], list[Quarantined], DocumentEntry]:
    said = about(read.fields, name)
    drafts = list(passages_of(read, name, 0, settings.passage_chars_max))
    digest = sha256(msgspec.json.encode((drafts, said.owner, said.reviewed_by))).hexdigest()
    version = 1 if before is None else before.version + (before.sha256 != digest)
    made: list[Passage] = []
    held: list[Quarantined] = []
    for draft, layout in drafts:
        passage = replace(draft, version=version, id=draft.id.replace("@0#", f"@{version}#"))
        reason = layout or suspicious(passage.title) or suspicious(passage.text)
        if reason is not None:
            held.append(Quarantined(passage.id, reason, passage.text))
        elif passage.text:
            made.append(passage)
    return made, held, DocumentEntry(version, digest, len(made), said.owner, said.reviewed_by)


async def import_folder(
    folder: Path,
    store: Store,
    settings: KnowledgeSettings,
    *,
    now_ms: int,
    encoder: Encoder | None = None,
    encoder_name: str = "",
    use: bool = True,
) -> Import:
    """Take a folder in as a new version, and put it in use; one that changes nothing makes none.

    encoder: whose vectors are kept beside; without it a search goes by words alone.

    Raises:
        ImportRefused: see `read_folder`; nothing was written.
        KnowledgeBroken: the last version is damaged.
        ModelError: the encoder gave no answer; nothing was written.
    """
    names = store.versions()
    last = store.manifest(names[-1]) if names else None
    content, ignored = read_folder(folder, last.documents if last else {}, settings)
    if encoder is not None:
        content = replace(content, encoder=encoder_name or "encoder")
    made = last is None or last.content != content.sha256()
    if made:
        if encoder is not None:
            content = replace(content, vectors=await encode(encoder, content.passages))
        name = store.add(content, now_ms)
    else:
        name = names[-1]
    if use and store.current() != name:
        store.use(name)
    return Import(
        name=name,
        made=made,
        passages=len(content.passages),
        documents=sum(entry.passages > 0 for entry in content.documents.values()),
        quarantined=content.quarantined,
        duplicates=near_duplicates(content.passages, settings.duplicate_share),
        ignored=ignored,
    )

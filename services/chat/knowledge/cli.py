"""`weir knowledge`: the bank's own documents, in versions."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.chat.domain import Language
from services.chat.knowledge.errors import ImportRefused, KnowledgeMissing
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Store, find_in
from services.chat.knowledge.stores import store_of
from services.chat.understanding import language_of
from weir.clock import now_ms

if TYPE_CHECKING:
    from services.chat.domain import Encoders
    from services.chat.knowledge.search import Found

app = typer.Typer(help="The bank's own documents: import them, search them.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")]
Root = Annotated[
    Path | None, typer.Option("--folder", help="Where the versions lie; default by [knowledge].")
]

STARTER = Path(__file__).parent / "starter"


def _store(folder: Path | None) -> tuple[Store, KnowledgeSettings]:
    settings = KnowledgeSettings.load()
    return store_of(settings, folder), settings


@asynccontextmanager
async def _encoders(settings: KnowledgeSettings) -> AsyncIterator["Encoders | None"]:
    """What the settings name; None searches by words alone."""
    if not settings.encoder:
        yield None
        return
    from services.chat.knowledge.encoding import opened
    from weir.config import TritonSettings

    async with opened(settings, TritonSettings.load()) as encoders:
        yield encoders


@app.command("import")
def import_(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of Markdown, HTML, CSV and PDF; none takes the starter set.")
    ] = None,
    use: Annotated[bool, typer.Option("--use/--no-use", help="Put it in use at once.")] = True,
    folder: Root = None,
    as_json: AsJson = False,
) -> None:
    """Take a folder in as a new version; one that changes nothing makes none."""
    from services.chat.knowledge.importer import Import, import_folder

    store, settings = _store(folder)

    async def run() -> Import:
        async with _encoders(settings) as encoders:
            return await import_folder(
                directory or STARTER,
                store,
                settings,
                now_ms=now_ms(),
                encoder=None if encoders is None else encoders.passages,
                encoder_name=settings.encoder,
                use=use,
            )

    try:
        done = asyncio.run(run())
    except ImportRefused as error:
        for problem in error.problems[1:]:
            typer.echo(problem, err=True)
        raise
    if as_json:
        about = {
            "version": done.name,
            "made": done.made,
            "in_use": store.current() == done.name,
            "documents": done.documents,
            "passages": done.passages,
            "quarantined": [{"id": held.id, "reason": held.reason} for held in done.quarantined],
            "duplicates": [
                {"first": first, "second": second, "share": round(share, 3)}
                for first, second, share in done.duplicates
            ],
            "ignored": list(done.ignored),
        }
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for held in done.quarantined:
        typer.echo(f"kept out     {held.id}: {held.reason}")
    for first, second, share in done.duplicates:
        typer.echo(f"nearly same  {first} and {second}: {share:.0%}")
    for name in done.ignored:
        typer.echo(f"not read     {name}")
    counted = f"{done.documents} documents, {done.passages} passages"
    state = "in use" if store.current() == done.name else f"not in use; `weir knowledge use {done.name}`"
    typer.echo(
        f"{'version' if done.made else 'nothing changed since version'} {done.name}: {counted}, {state}"
    )


@app.command("list")
def list_(folder: Root = None, as_json: AsJson = False) -> None:
    """The versions, oldest first; the one in use has a star."""
    store, _ = _store(folder)
    in_use = store.current()
    rows = []
    for name in store.versions():
        manifest = store.manifest(name)
        created = datetime.fromtimestamp(manifest.created_ms / 1000, UTC)
        rows.append(
            {
                "version": name,
                "in_use": name == in_use,
                "created": created.isoformat(timespec="seconds"),
                "documents": sum(entry.passages > 0 for entry in manifest.documents.values()),
                "passages": manifest.passages,
                "quarantined": manifest.quarantined,
                "encoder": manifest.encoder,
            }
        )
    if as_json:
        typer.echo(json.dumps({"versions": rows}, indent=2))
        return
    if not rows:
        raise KnowledgeMissing(f"{store.where}: no knowledge yet. Try `weir knowledge import DIR`.")
    for row in rows:
        star = "*" if row["in_use"] else " "
        vectors = row["encoder"] or "no vectors"
        typer.echo(
            f"{star} {row['version']}  {row['created']}  {row['passages']} passages, "
            f"{row['quarantined']} kept out, {vectors}"
        )


@app.command("use")
def use_(version: str, folder: Root = None) -> None:
    """Put a version in use, after checking every byte; running workers take it with their next question."""
    store, _ = _store(folder)
    name = find_in(store, version)
    store.use(name)
    typer.echo(f"version {name} is in use")


@app.command("diff")
def diff_(first: str, second: str, folder: Root = None, as_json: AsJson = False) -> None:
    """Which passages came, went or changed from one version to another."""
    store, _ = _store(folder)
    before = {passage.id: passage for passage in store.open(find_in(store, first)).content.passages}
    after = {passage.id: passage for passage in store.open(find_in(store, second)).content.passages}
    # The same place of a document in another version is a change, not a loss and a gain.
    places_before, places_after = _places(before), _places(after)
    changed = sorted(
        (places_before[place], places_after[place])
        for place in places_before.keys() & places_after.keys()
        if before[places_before[place]].text != after[places_after[place]].text
    )
    gone = sorted(places_before[place] for place in places_before.keys() - places_after.keys())
    new = sorted(places_after[place] for place in places_after.keys() - places_before.keys())
    if as_json:
        typer.echo(json.dumps({"new": new, "gone": gone, "changed": changed}, indent=2))
        return
    for name in gone:
        typer.echo(f"- {name}")
    for name in new:
        typer.echo(f"+ {name}")
    for old, now in changed:
        typer.echo(f"~ {old} -> {now}")
    typer.echo(f"{len(new)} new, {len(gone)} gone, {len(changed)} changed")


def _places(names: Iterable[str]) -> dict[str, str]:
    made = {}
    for name in names:
        document, _, version_place = name.rpartition("@")
        made[f"{document}#{version_place.partition('#')[2]}"] = name
    return made


@app.command("search")
def search_(
    question: str,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many passages.")] = 5,
    language: Annotated[str | None, typer.Option(help="en or zh; default by the question.")] = None,
    version: Annotated[str | None, typer.Option(help="Default the one in use.")] = None,
    folder: Root = None,
    as_json: AsJson = False,
) -> None:
    """The passages nearest to a question, with relevance and why; a star marks those that answer it."""
    from services.chat.knowledge.search import Found, HybridRetriever

    store, settings = _store(folder)
    name = find_in(store, version) if version else store.current()
    if name is None:
        raise KnowledgeMissing(f"{store.where}: no knowledge yet. Try `weir knowledge import DIR`.")
    spoken: Language = language_of(question)
    if language is not None:
        if language not in ("en", "zh"):
            raise typer.BadParameter("must be en or zh", param_hint="--language")
        spoken = "zh" if language == "zh" else "en"

    async def run() -> Found:
        async with _encoders(settings) as encoders:
            asked = encoders.asked if encoders is not None else None
            retriever = HybridRetriever(
                store.open(name),
                asked,
                indexes=store.indexes(name),
                encoder_name=settings.encoder or None,
                relevance_min=settings.relevance_min,
            )
            return await retriever.find(question, spoken, count=count, now_ms=now_ms())

    found = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(_as_dict(found, name), indent=2, ensure_ascii=False))
        return
    for hit, why in found.nearest:
        star = "*" if hit.relevance >= found.threshold else " "
        ranks = f"words {why.bm25_rank or '-'}, meaning {why.vector_rank or '-'}"
        typer.echo(f"{star} {hit.passage.id}  {hit.relevance:.2f}  {hit.passage.title}  ({ranks})")
        typer.echo(f"    {hit.passage.text}")
    if found.degraded:
        typer.echo(f"degraded: {found.degraded}; by words alone", err=True)
    if not found.hits:
        typer.echo(f"Nothing answers this (relevance under {found.threshold:.2f}).")


@app.command("evaluate")
def evaluate_(
    faq: Annotated[
        Path | None, typer.Option("--faq", help="JSON lines of id, question, answer to search too.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="First fit the relevance anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Recall, MRR, and what is found wrongly or missed, on the starter knowledge."""
    from services.chat.evaluate.retrieval import measure

    settings = KnowledgeSettings.load()

    async def run() -> dict[str, object]:
        async with _encoders(settings) as encoders:
            if fit:
                await _fit(encoders, settings.encoder, as_json=as_json)
            return await measure(encoders, encoder_name=settings.encoder, faq_file=faq)

    made = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    for name, figures_of in made.items():
        if isinstance(figures_of, dict):
            typer.echo(f"{name} ({figures_of['passages']} passages)")
            for way, values in figures_of["search"].items():
                told = ", ".join(
                    f"{key} {value['mean']:.3f} ({value['low']:.3f}-{value['high']:.3f}, n={value['count']})"
                    for key, value in values.items()
                )
                typer.echo(f"  {way}: {told}")
            for key, value in figures_of.get("answered", {}).items():
                typer.echo(
                    f"  {key}: {value['share']:.3f} ({value['low']:.3f}-{value['high']:.3f}, "
                    f"n={value['count']})"
                )


def _as_dict(found: "Found", name: str) -> dict[str, object]:
    return {
        "version": name,
        "threshold": round(found.threshold, 4),
        "degraded": found.degraded,
        "passages": [
            {
                "id": hit.passage.id,
                "relevance": round(hit.relevance, 4),
                "answers": hit.relevance >= found.threshold,
                "title": hit.passage.title,
                "text": hit.passage.text,
                "bm25_rank": why.bm25_rank,
                "vector_rank": why.vector_rank,
                "features": {key: round(value, 4) for key, value in why.features.items()},
            }
            for hit, why in found.nearest
        ],
    }


async def _fit(encoders: "Encoders | None", name: str, *, as_json: bool) -> None:
    """The relevance by words, and by meaning where there is an encoder, into the package's own file."""
    from services.chat.evaluate.fit_relevance import fit_starter
    from services.chat.knowledge import relevance

    ways = [("words", None)] if encoders is None else [("words", None), (name, encoders)]
    for way, with_ in ways:
        fitted, held_out = await fit_starter(relevance.shipped(), encoders=with_, name=way)
        relevance.save(fitted)
        for language, figures in held_out.items():
            typer.echo(
                f"{language}, by {way}, questions left out of the fit: "
                f"found wrongly {figures.found_wrongly}, missed {figures.missed}, "
                f"another first {figures.wrong_first}",
                err=as_json,
            )

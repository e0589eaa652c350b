"""Where the checkout and everything local to it lie; standard library only, so that bare Python reads it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".weir"

VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"

# What a set-up works in before it renames; emptied by the next one.
SCRATCH = HOME / "scratch"

KAFKA_LIB = HOME / "kafka" / "lib"
KAFKA_CLASS_CACHE = HOME / "kafka" / "class-cache"
TRITON_ENV = HOME / "triton-env"
TRITON = HOME / "triton"
TRITON_BACKENDS = TRITON / "backends"
TRITON_MODELS = TRITON / "models"
JAVA = HOME / "java"
MARIADB = HOME / "mariadb"
TOOLS = HOME / "tools"

MODEL_SOURCES = ROOT / "triton_models"

RUN = HOME / "run"
LOGS = HOME / "logs"
DATA = HOME / "data"

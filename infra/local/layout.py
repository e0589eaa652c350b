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
# Model repositories of what set-up has converted, and beside them what their models read.
MODELS = HOME / "models"
# How likely a passage answers was fitted for this encoder, by its name.
ENCODER = "multilingual-e5-small"
ENCODER_MODELS = MODELS / "encoder-repository"
# What ships: the head over the encoder's vectors.
INTENT_MODELS = ROOT / "services" / "chat" / "understanding" / "models"
LLM_MODELS = MODELS / "llm-repository"
# The weights that the model there reads.
LLM_CONVERTED = MODELS / "llm-converted"
# The starter knowledge with its vectors, for a first start without waiting.
STARTER_KNOWLEDGE = MODELS / "starter-knowledge"
MARIADB = HOME / "mariadb"
TOOLS = HOME / "tools"

MODEL_SOURCES = ROOT / "triton_models"

RUN = HOME / "run"
LOGS = HOME / "logs"
DATA = HOME / "data"

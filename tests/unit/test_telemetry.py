"""No library reports to its maker: what would, is switched off before it is first imported."""

import os
import subprocess
import sys

import pytest

from infra.local import layout

PARTS = ("services.training.repository", "services.training.compress", "infra.encoder.local", "bench.models")


@pytest.mark.parametrize("module", PARTS)
def test_onnx_runtime_leaves_no_identifier_of_the_machine_behind(module, tmp_path):
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", f"import {module}, onnxruntime"]
    subprocess.run(command, cwd=layout.ROOT, env=environment, check=True)
    assert not list(tmp_path.rglob("*deviceid*"))
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_without_the_switch_it_would(tmp_path):
    """Else the test above would prove nothing; a release that stops doing so may drop both."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=environment, check=True)
    assert list(tmp_path.rglob("deviceid"))


@pytest.mark.parametrize("backend", ["python_onnx", "python_llm"])
def test_a_model_on_triton_switches_it_off_before_its_first_import(backend):
    code = (layout.ROOT / "infra" / "triton" / backend / "model.py").read_text()
    switch = code.index('os.environ["ORT_DISABLE_TELEMETRY"] = "1"')
    assert switch < code.index("import numpy")

"""A real Triton Inference Server on the CPU, bound to the loopback interface.

The model repository is written for the stock GPU image (`backend: "onnxruntime"`). The server that a package
registry carries has the Python backend alone, so the repository is staged: each ONNX model gets a `model.py`
that runs ONNX Runtime over the same `model.onnx`, with the same tensors, batch sizes and dynamic batching.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import grpc

from infra.local import layout
from infra.local.pki import Identity
from infra.local.ports import LOOPBACK, free_port, require_free
from infra.local.server import LocalServer
from weir.errors import ConfigError, MissingPart

PYTHON_ONNX = layout.ROOT / "infra" / "triton" / "python_onnx" / "model.py"

_READY_METHOD = "/inference.GRPCInferenceService/ServerReady"
_READY_ANSWER = b"\x08\x01"  # ServerReadyResponse{ready: true}


@dataclass(frozen=True, slots=True)
class TritonTls:
    """TLS on the gRPC port; files are PEM. With `client_ca` a caller must show a certificate signed by it.

    `caller` is what the probe for readiness shows then; None shows the server's own, which a certificate
    for servers alone is not good for.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    caller: Identity | None = None

    def arguments(self) -> list[str]:
        """The server's flags."""
        flags = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
        ]
        if self.client_ca:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return flags


class TritonServer(LocalServer):
    """`tritonserver` over a staged copy of a model repository.

    Args:
        model_repository: the models as written for the stock image.
        log_path: what the server prints.
        staged: where the copy goes; replaced at each `prepare`.
        grpc_port, metrics_port: 0 chooses a free one.
        also: further repositories, staged with the first; a model of the same name is the last one's.
        intra_op_threads: of ONNX Runtime, for models whose configuration names none.
        model_control: "explicit" lets a caller load and unload models; "none" loads all at the start.
        tls: on the gRPC port; the metrics stay in the clear on the loopback interface, HTTP is closed.
        environment: the virtual environment that holds the server.
    """

    name: ClassVar[str] = "triton"

    def __init__(
        self,
        model_repository: Path,
        log_path: Path,
        *,
        also: Sequence[Path] = (),
        staged: Path = layout.TRITON_MODELS,
        grpc_port: int = 0,
        metrics_port: int = 0,
        intra_op_threads: int = 1,
        model_control: Literal["none", "explicit"] = "none",
        tls: TritonTls | None = None,
        environment: Path = layout.TRITON_ENV,
    ) -> None:
        super().__init__(log_path)
        self.model_repository, self.also = model_repository, tuple(also)
        self.staged = staged
        self.grpc_port = grpc_port or free_port()
        self.metrics_port = metrics_port or free_port()
        self.intra_op_threads = intra_op_threads
        self.model_control = model_control
        self.tls = tls
        self.environment = environment

    @property
    def endpoint(self) -> str:
        """host:port of the gRPC service."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    def prepare(self) -> None:
        """Check the ports and stage the models.

        Raises:
            PortTaken, MissingPart, ConfigError: say what to do.
        """
        for port in (self.grpc_port, self.metrics_port):
            require_free(port, self.name)
        sources = (self.model_repository, *self.also)
        stage(*sources, target=self.staged, intra_op_threads=self.intra_op_threads)

    def command(self) -> list[str]:
        """The server's command line."""
        program = site_packages(self.environment) / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        if not (program.is_file() and (layout.TRITON_BACKENDS / "python").is_dir()):
            raise MissingPart(f"The Triton server is not in {self.environment}. Run `make setup`.")
        return [
            str(program),
            f"--model-repository={self.staged}",
            f"--backend-directory={layout.TRITON_BACKENDS}",
            f"--model-control-mode={self.model_control}",
            # ONNX Runtime in a stub needs little; Triton reserves 64 MB of shared memory a model instance.
            "--backend-config=python,shm-default-byte-size=16777216",
            "--allow-http=false",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            "--allow-metrics=true",
            "--allow-gpu-metrics=false",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            "--log-verbose=0",
            *(self.tls.arguments() if self.tls else []),
        ]

    def env(self) -> dict[str, str]:
        """The environment that lets the server and its Python stub find their libraries."""
        site = site_packages(self.environment)
        environment = {
            name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH"}
        }
        libraries = [str(site / "nvidia_pytriton.libs")]
        if (lib := layout.TRITON / "lib").is_dir():
            # A libpython that setup laid out does not know where its standard library is.
            libraries.append(str(lib))
            environment["PYTHONHOME"] = _base_prefix(self.environment)
        if own := os.environ.get("LD_LIBRARY_PATH"):
            libraries.append(own)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        environment["WEIR_TRITON_SITE_PACKAGES"] = str(site)
        return environment

    def probe(self) -> str | None:
        """None once the server says that it and its models are ready."""
        try:
            with self._channel() as channel:
                ready = channel.unary_unary(_READY_METHOD)(b"", timeout=2.0)
        except grpc.RpcError:
            return f"no answer on port {self.grpc_port}"
        return None if ready == _READY_ANSWER else "its models are not loaded yet"

    def _channel(self) -> grpc.Channel:
        # A pool of its own: a shared one would wait out the back-off of an earlier failed connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if self.tls is None:
            return grpc.insecure_channel(self.endpoint, options=options)
        tls, roots = self.tls, self.tls.certificate.read_bytes()
        caller = None
        if tls.client_ca is not None:
            caller = tls.caller or Identity(tls.certificate, tls.key)
            roots += tls.client_ca.read_bytes()
        credentials = grpc.ssl_channel_credentials(
            root_certificates=roots,
            private_key=caller.key.read_bytes() if caller else None,
            certificate_chain=caller.certificate.read_bytes() if caller else None,
        )
        return grpc.secure_channel(self.endpoint, credentials, options=options)


def _base_prefix(environment: Path) -> str:
    """Where the Python lies from which the environment was made."""
    for line in (environment / "pyvenv.cfg").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "home":
            return str(Path(value.strip()).parent)
    raise MissingPart(f"{environment}/pyvenv.cfg names no home. Run `make setup`.")


def site_packages(environment: Path) -> Path:
    """The folder of an environment's packages.

    Raises:
        MissingPart: there is no environment.
    """
    found = sorted(environment.glob("lib/python3.*/site-packages"))
    if not found:
        raise MissingPart(f"Triton's environment is not in {environment}. Run `make setup`.")
    return found[0]


def stage(*sources: Path, target: Path, intra_op_threads: int = 1) -> list[str]:
    """Copy model repositories to `target` for a server that has the Python backend alone; the models' names.

    A folder with a `config.pbtxt` is a model, each of its numbered folders a version. `target` is replaced
    as a whole, and only once the copy is complete.

    Raises:
        ConfigError: a configuration does not parse, or names a backend that does not run on a CPU.
        MissingPart: no model repository.
    """
    for source in sources:
        if not source.is_dir():
            raise MissingPart(f"No model repository at {source}. Correct the path.")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        configs = {path.parent.name: path for source in sources for path in source.glob("*/config.pbtxt")}
        names = sorted(configs)
        for name in names:
            _stage_model(configs[name], fresh / name, intra_op_threads)
        fresh.chmod(0o755)
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        if target.exists():
            target.rename(old / "old")
        fresh.rename(target)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return names


def _stage_model(config: Path, target: Path, intra_op_threads: int) -> None:
    text, onnx = cpu_config(
        config.read_text(encoding="utf-8"), intra_op_threads=intra_op_threads, where=config
    )
    target.mkdir(parents=True)
    (target / "config.pbtxt").write_text(text, encoding="utf-8")
    for version in config.parent.iterdir():
        if not (version.is_dir() and version.name.isdecimal()):
            continue
        if onnx and not (version / "model.onnx").is_file():
            continue
        shutil.copytree(version, target / version.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        if onnx:
            shutil.copyfile(PYTHON_ONNX, target / version.name / "model.py")


def cpu_config(text: str, *, intra_op_threads: int, where: Path) -> tuple[str, bool]:
    """A model's `config.pbtxt` as the Python backend on a CPU takes it, and whether it is an ONNX model.

    Raises:
        ConfigError: it does not parse, or its backend is neither ONNX Runtime nor Python.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ConfigError(f"{where}: {error}. Correct the model's configuration.") from error
    onnx = config.backend == "onnxruntime" or config.platform in {"onnxruntime_onnx", "onnxruntime"}
    if not onnx and config.backend != "python":
        raise ConfigError(
            f"{where}: backend {config.backend or config.platform or '(none)'!r} does not run in the "
            'embedded server. Use "onnxruntime" or "python", or set [triton] endpoint to one that has it.'
        )
    for group in config.instance_group:
        group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
        del group.gpus[:]
    if onnx:
        config.backend = "python"
        config.ClearField("platform")
        config.ClearField("default_model_filename")
        config.ClearField("optimization")
        if "intra_op_thread_count" not in config.parameters:
            config.parameters["intra_op_thread_count"].string_value = str(intra_op_threads)
    return text_format.MessageToString(config), onnx

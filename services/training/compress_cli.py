"""`weir compress`: a served model made smaller, measured, and one of the results kept."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.compress.cli import compress_encoder, compress_llm
from services.training.command import AsJson, Data, Protocol, Repository, Seed, step, table_of
from services.training.errors import TrainingError
from services.training.settings import TrainingSettings

if TYPE_CHECKING:
    from services.training.compress import Line, Variant

app = typer.Typer(help="A served model made smaller and faster, and what that costs.", no_args_is_help=True)


@app.callback()
def _compress() -> None:
    """A served model made smaller and faster, and what that costs."""


@app.command("risk")
def compress_risk(
    data: Data,
    model: Annotated[str, typer.Option(help="Version to start from.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the table, the plot and the graphs.")],
    protocol: Annotated[Protocol, typer.Option(help="As for `weir evaluate risk`.")] = Protocol.LATER,
    keep: Annotated[
        str | None, typer.Option(help="Name of a variant to put into the repository as a version.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version to write; default the next one.")] = None,
    repository: Repository = None,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Prune and quantise a version; size, speed, average precision and reasons of each result."""
    import onnx

    from services.training.compress import pareto, speeds, variants
    from services.training.imported import from_onnx
    from services.training.repository import ModelRepository, config_text, write_file
    from weir.features.payments import DEFAULT

    settings = TrainingSettings.load()
    home = ModelRepository(repository or settings.repository)
    with step("reading events and computing features"):
        table = table_of(data, settings, protocol)
        served = home.open("risk", model, features=table.features)
    larger = from_onnx(onnx.load(served.folder / "model.onnx"))
    with step("making the variants"):
        # How often a cell is met is told by what the model was fitted on: the test rows only judge.
        seen = table.known_rows(table.split.train, honest_max=settings.honest_rows_max, seed=seed)
        made = variants(larger, seen.x, seen.weight)
        spec = served.about["feature_spec"]
        graphs = {each.name: each.graph(spec) for each in made}
    with step("measuring"):
        rows = table.test_rows(DEFAULT.label_delay_days)
        speed = speeds(graphs, table.x[rows])
        lines = pareto([_line(each, made[0], table, rows, graphs, speed, settings, seed) for each in made])
    for name, graph in graphs.items():
        folder = out / "models" / f"risk-{slug(name)}"
        (folder / "1").mkdir(parents=True, exist_ok=True)
        write_file(folder / "1" / "model.onnx", graph.SerializeToString(deterministic=True))
        text = config_text(f"risk-{slug(name)}", len(table.features))
        write_file(folder / "config.pbtxt", text.encode())
    about = {
        "model": {"name": "risk", "version": model, "sha256": served.about["sha256"]},
        "fingerprint": table.events.fingerprint,
        "window": str(table.split.test),
        "rows": int(rows.sum()),
        "variants": [line.as_dict() for line in lines],
    }
    _write(out, about, lines)
    if keep is not None:
        chosen = next((each for each in made if each.name == keep), None)
        if chosen is None:
            names = ", ".join(repr(each.name) for each in made[1:])
            raise TrainingError(f"There is no variant {keep!r}. There are: {names}.")
        if chosen.tensor_bits is not None:
            raise TrainingError(f"{keep!r} is a form for a GPU: write it with `weir models export`.")
        about["kept"] = str(
            _keep(chosen, served.about, graphs[keep], home, version, table, rows, settings, seed)
        )
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo(table_text(lines))
    typer.echo(f"\nIn {out}: compress.json, compress.md, pareto.svg, and the graphs below models/.")
    if keep is not None:
        typer.echo(f"{keep!r} is kept in {about['kept']}.")


app.command("llm")(compress_llm)
app.command("encoder")(compress_encoder)


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return name.replace(", ", "-").replace(" ", "-")


def table_text(lines: "list[Line]") -> str:
    """The Markdown table of all variants."""
    out = [
        "| variant | KB | cells | average precision | first reason same | first 3 same "
        "| contribution moved, at most | µs a call, 1 row (p99) | µs a call, 256 rows (p99) | rows/s |",
        "|---|---" + "|---:" * 8 + "|",
    ]
    for line in lines:
        close, speed = line.fidelity, line.speed
        name = f"**{line.name}**" if line.best else line.name
        out.append(
            f"| {name} | {line.size / 1000:,.1f} | {line.cells:,} "
            f"| {line.average_precision:.4f} ({line.average_precision_low:.3f} to "
            f"{line.average_precision_high:.3f}) "
            f"| {close.first_same:.1%} | {close.top_same:.1%} | {close.contribution_max:.3f} "
            f"| {speed.one_p50_us:.1f} ({speed.one_p99_us:.1f}) | {speed.many_p50_us:.0f} "
            f"({speed.many_p99_us:.0f}) | {speed.rows_s:,.0f} |"
        )
    out.append(
        "\nBold: no other is smaller and as precise. Speed: ONNX Runtime, one thread, measured in turns."
    )
    return "\n".join(out)


def _line(
    each: "Variant",
    larger: "Variant",
    table: Any,
    rows: Any,
    graphs: Any,
    speed: Any,
    settings: TrainingSettings,
    seed: int,
) -> "Line":
    from services.training.baselines import ModelScorer
    from services.training.compress import Line, cell_count, fidelity

    x = table.x[rows]
    precision = table.measure(
        ModelScorer(each.model), rows, draws=settings.bootstrap_draws, seed=seed
    ).metrics["average_precision"]
    return Line(
        name=each.name,
        size=len(graphs[each.name].SerializeToString(deterministic=True)),
        cells=cell_count(each.model),
        average_precision=precision.value,
        average_precision_low=precision.low,
        average_precision_high=precision.high,
        fidelity=fidelity(
            larger.model.contributions(x),
            each.model.contributions(x),
            each.model.base_logit - larger.model.base_logit,
        ),
        speed=speed[each.name],
    )


def _write(out: Path, about: dict[str, Any], lines: "list[Line]") -> None:
    from services.training.plots import pareto_plot

    (out / "compress.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (out / "compress.md").write_text(table_text(lines) + "\n", encoding="utf-8")
    points = [(line.name, line.size / 1000, line.average_precision, line.best) for line in lines]
    pareto_plot(out / "pareto.svg", points, across="size of model.onnx, KB", up="average precision")


def _keep(
    chosen: "Variant",
    source: Any,
    graph: Any,
    home: Any,
    version: str | None,
    table: Any,
    rows: Any,
    settings: TrainingSettings,
    seed: int,
) -> Path:
    """The variant as a version of its own, with its own figures and where it came from."""
    import numpy as np

    from services.training.baselines import ModelScorer
    from services.training.card import model_cards

    scorer = ModelScorer(chosen.model)
    about = {
        **source,
        "version": version or home.next_version("risk"),
        "base_logit": float(np.float32(chosen.model.base_logit)),
        "trained": {
            **source["trained"],
            "compressed": {"from": source["version"], "sha256": source["sha256"], "how": chosen.name},
        },
        "metrics": {
            **source["metrics"],
            "test": table.measure(scorer, rows, draws=settings.bootstrap_draws, seed=seed).as_dict(),
        },
    }
    folder: Path = home.write(graph, about, model_cards)
    home.verify("risk", about["version"], features=table.features)
    return folder

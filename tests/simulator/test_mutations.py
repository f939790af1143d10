"""What we send to the compiler passes, and nothing passes that was changed so that it breaks a rule.

The job is a tiny model with continuous batching in a pipeline of two pairs of devices, with all files that a job can
have; our own code writes them. A seed says which mutation it gets, and what that mutation chooses by chance.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path

import onnx
import pytest
from command_mutations import COMMAND_MUTATIONS
from graph_mutations import GRAPH_MUTATIONS
from mutants import FOLDER, MODEL, Mutant, Mutation

from qaic_simulator.compiler import main
from qaic_simulator.profiles import SDKS
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices.cloud_ai_100.command import Compilation, Files, command
from QEfficient.devices.cloud_ai_100.custom_io import custom_io_text
from QEfficient.devices.cloud_ai_100.options import read_options
from QEfficient.devices.cloud_ai_100.partitions import pipeline_text
from QEfficient.devices.cloud_ai_100.sdk import DEFAULT_ROOT, Sdk
from QEfficient.devices.cloud_ai_100.specializations_file import specializations_text
from QEfficient.program import ExportedProgram, load_exported
from QEfficient.specs import CompileSpec
from QEfficient.verification.tiny_models import tiny_model

MUTATIONS = (*COMMAND_MUTATIONS, *GRAPH_MUTATIONS)
SEEDS = range(200)
DEVICES, CORES = 4, 16
SPEC = CompileSpec(prefill_seq_len=8, ctx_len=64, full_batch_size=4)
OPTIONS = {"num_cores": CORES, "mxfp6_matmul": True, "mos": 1, "aic_enable_depth_first": True}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> ExportedProgram:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
    return load_exported(Path(wrapped.export(tmp_path_factory.mktemp("llama") / "exported")).parent)


@pytest.fixture(scope="module")
def jobs(program: ExportedProgram) -> dict[str, Mutant]:
    """The unbroken job, for each release."""
    return {sdk: good_job(program, sdk) for sdk in SDKS}


def good_job(program: ExportedProgram, sdk: str) -> Mutant:
    source = program.onnx_path("lm")
    model = onnx.load(source, load_external_data=False)
    weights_name = f"{source.name}.data"
    entries = SPEC.specializations(program.graphs["lm"].spec.windows)
    installed = Sdk(DEFAULT_ROOT, DEFAULT_ROOT / "exec/qaic-compile", f"{sdk}.0")
    files = {
        "specializations.json": specializations_text(entries, installed),
        "custom_io.yaml": custom_io_text(program.graphs["lm"].spec, program.dtype) or "",
        "mdp.json": pipeline_text(halves(model), DEVICES, CORES),
        "nodes.yaml": "FP32NodeInstanceNames:\n" + "".join(f"  - {name}\n" for name in roots(model)),
    }
    return Mutant(sdk, arguments(installed), files, model, (source.parent / weights_name).read_bytes(), weights_name)


def arguments(sdk: Sdk) -> list[str]:
    folder = Path(FOLDER)
    given = {"mdp_load_partition_config": str(folder / "mdp.json"), "node_precision_info": str(folder / "nodes.yaml")}
    files = Files.within(folder, folder / MODEL, DEVICES)
    return command(Compilation(sdk, files, read_options({**OPTIONS, **given})))[1:]


def halves(model: onnx.ModelProto) -> list[list[str]]:
    """The nodes of the graph for two partitions."""
    names = [node.name for node in model.graph.node]
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def roots(model: onnx.ModelProto) -> list[str]:
    """Nodes of the first norm, which stay in fp32; of the other norms they do not."""
    return [node.output[0] for node in model.graph.node if node.op_type == "Sqrt"][:1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QAIC_SIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("sdk", SDKS)
def test_accepted_as_it_is(
    sdk: str,
    jobs: dict[str, Mutant],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QAIC_SIM_SDK", sdk)
    argv = jobs[sdk].lay_out(tmp_path / "job")
    assert main(argv) == 0, capsys.readouterr().err
    assert (tmp_path / "job" / "qpc" / "programqpc.bin").stat().st_size > len(jobs[sdk].weights)
    named = ["-custom-IO-list-file", "-mdp-load-partition-config", "-node-precision-info"]
    assert {*named, "-network-specialization-config"} <= {argument.partition("=")[0] for argument in argv}


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
@pytest.mark.parametrize("seed", SEEDS)
def test_refused_once_it_is_broken(
    seed: int,
    jobs: dict[str, Mutant],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mutate, sdk = turn(seed)
    monkeypatch.setenv("QAIC_SIM_SDK", sdk)
    mutant = copy.deepcopy(jobs[sdk])
    mutate(mutant, random.Random(seed))
    code = main(mutant.lay_out(tmp_path / "job"))
    said = capsys.readouterr().err
    assert code and "simulator rule: " in said, f"seed {seed}: {mutate.__name__} under {sdk} is not refused: {said}"


def turn(seed: int) -> tuple[Mutation, str]:
    """The mutation of a seed, and the release that it is tried with: the other one the next time."""
    return MUTATIONS[seed % len(MUTATIONS)], SDKS[(seed + seed // len(MUTATIONS) * (1 - len(MUTATIONS) % 2)) % 2]


def test_every_mutation_has_its_turn_under_both_releases() -> None:
    assert {turn(seed) for seed in SEEDS} == {(mutate, sdk) for mutate in MUTATIONS for sdk in SDKS}


@pytest.mark.parametrize("sdk", SDKS)
def test_the_job_is_written_as_the_release_reads_it(sdk: str, jobs: dict[str, Mutant]) -> None:
    entries = json.loads(jobs[sdk].files["specializations.json"])["specializations"]
    assert len(entries) == 2 and ("symbols" in entries[0]) == (sdk == "1.22")

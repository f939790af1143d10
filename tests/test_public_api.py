"""The names, signatures and errors that scripts written for Qualcomm's library rely on."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import QEfficient
from qaic_simulator.root import write_root
from QEfficient import errors
from QEfficient.demo import demo_folder

TOP = Path(__file__).parent.parent

REQUIRED = inspect.Parameter.empty
FROM_PRETRAINED = {"continuous_batching": False, "qaic_config": None, "max_seq_len_cached": None, "layerwise": False}
SIGNATURES = {
    "QEFFAutoModelForCausalLM.from_pretrained": {"pretrained_model_name_or_path": REQUIRED, **FROM_PRETRAINED},
    "QEFFAutoModelForCausalLM.export": {
        "self": REQUIRED,
        "export_dir": None,
        "prefill_only": False,
        "prefill_seq_len": None,
        "num_cores": 16,
        "moe_prefill_packed_chunk_size": 256,
        "layerwise": False,
        "layerwise_window_size": 1,
        "kv_cache_prefix": None,
        "dynamo": False,
        "use_onnx_subfunctions": False,
        "retain_full_kv": False,
    },
    "QEFFAutoModelForCausalLM.compile": {
        "onnx_path": None,
        "compile_dir": None,
        "prefill_seq_len": 32,
        "ctx_len": 128,
        "batch_size": 1,
        "full_batch_size": None,
        "kv_cache_batch_size": None,
    },
    "QEFFAutoModel.from_pretrained": {"pretrained_model_name_or_path": REQUIRED, "pooling": None},
    "QEFFAutoModel.export": {"export_dir": None, "use_onnx_subfunctions": False},
    "QEFFAutoModel.compile": {"onnx_path": None, "compile_dir": None, "seq_len": 32, "batch_size": 1},
    "QEFFCommonLoader.from_pretrained": {
        "pretrained_model_name_or_path": REQUIRED,
        **FROM_PRETRAINED,
        "hf_token": None,
        "cache_dir": None,
        "local_model_dir": None,
        "full_batch_size": None,
    },
    "transform": {"model": REQUIRED, "form_factor": "cloud"},
    "export": {
        "model_name": REQUIRED,
        "model_kv": None,
        "local_model_dir": None,
        "tokenizer": None,
        "cache_dir": None,
        "onnx_dir_path": None,
        "hf_token": None,
        "seq_length": 32,
        "kv": True,
        "form_factor": "cloud",
        "full_batch_size": None,
    },
    "compile": {
        "onnx_path": REQUIRED,
        "qpc_path": REQUIRED,
        "num_cores": REQUIRED,
        "device_group": None,
        "aic_enable_depth_first": False,
        "mos": -1,
        "batch_size": 1,
        "prompt_len": 32,
        "ctx_len": 128,
        "mxfp6": True,
        "mxint8": False,
        "custom_io_file_path": None,
        "full_batch_size": None,
        "allow_mxint8_mdp_io": False,
        "enable_qnn": False,
        "qnn_config": None,
    },
    "cloud_ai_100_exec_kv": {
        "tokenizer": REQUIRED,
        "qpc_path": REQUIRED,
        "prompt": None,
        "prompts_txt_file_path": None,
        "device_id": None,
        "generation_len": None,
        "comp_ctx_lengths_prefill": None,
        "comp_ctx_lengths_decode": None,
        "enable_debug_logs": False,
        "stream": True,
        "write_io_dir": None,
        "automation": False,
        "iteration": 1,
        "prompt_to_lora_id_mapping": None,
        "is_tlm": False,
        "include_sampler": False,
        "return_pdfs": False,
        "include_guided_decoding": False,
        "sampling_params": None,
    },
    "generation.text_generation_inference.TextGeneration": {
        "tokenizer": REQUIRED,
        "qpc_path": REQUIRED,
        "full_batch_size": None,
        "ctx_len": None,
        "comp_ctx_lengths_prefill": None,
        "comp_ctx_lengths_decode": None,
        "device_id": None,
        "enable_debug_logs": False,
        "write_io_dir": None,
        "is_tlm": False,
        "include_sampler": False,
        "return_pdfs": False,
        "include_guided_decoding": False,
        "sampling_params": None,
    },
    "generation.text_generation_inference.TextGeneration.generate": {
        "self": REQUIRED,
        "prompt": REQUIRED,
        "generation_len": None,
        "stream": True,
        "automation": False,
        "prompt_to_lora_id_mapping": None,
    },
    "generation.text_generation_inference.CloudAI100ExecInfoNew": dict.fromkeys(
        ("batch_size", "generated_ids", "perf_metrics"), REQUIRED
    ),
    "PerfMetrics": dict.fromkeys(("prefill_time", "decode_perf", "total_perf", "total_time"), REQUIRED),
    "CloudAI100ExecInfo": dict.fromkeys(("batch_size", "generated_texts", "generated_ids", "perf_metrics"), REQUIRED),
}
SCRIPTED = "generation.text_generation_inference"
IN_ORDER = (
    "QEFFAutoModelForCausalLM.from_pretrained",
    "QEFFAutoModelForCausalLM.export",
    "QEFFCommonLoader.from_pretrained",
    "export",
    "compile",
    "transform",
    "cloud_ai_100_exec_kv",
    f"{SCRIPTED}.TextGeneration",
    f"{SCRIPTED}.TextGeneration.generate",
    f"{SCRIPTED}.CloudAI100ExecInfoNew",
    "PerfMetrics",
    "CloudAI100ExecInfo",
)
"""Called by position too."""


def resolved(name: str) -> object:
    importlib.import_module(f"QEfficient.{SCRIPTED}")
    found: object = QEfficient
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    found = {p.name: p.default for p in inspect.signature(resolved(name)).parameters.values()}  # type: ignore[arg-type]
    wanted = SIGNATURES[name]
    assert {parameter: found.get(parameter, "absent") for parameter in wanted} == wanted
    if name in IN_ORDER:
        assert list(found)[: len(wanted)] == list(wanted)


def test_names() -> None:
    assert set(QEfficient.__all__) >= {n.partition(".")[0] for n in SIGNATURES if SCRIPTED not in n} | {"__version__"}
    assert QEfficient.qualcomm_efficient_converter is QEfficient.export
    from QEfficient.transformers.models import modeling_auto

    for name in modeling_auto.__all__:
        assert getattr(modeling_auto, name) is getattr(QEfficient, name)


@pytest.mark.parametrize("there", [True, False])
def test_the_runtime_of_the_card(tmp_path: Path, there: bool) -> None:
    """Asked of a fresh interpreter, in which no session has looked for it yet."""
    root = write_root(tmp_path, "1.22") if there else tmp_path
    code = "import QEfficient; print(QEfficient.check_qaic_sdk())"
    environment = {**os.environ, "QEFF_QAIC_ROOT": str(root), "QEFF_QAIC_SIMULATOR": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(there)]


def test_a_simulator_that_is_not_known_is_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qaicrt", "QAicApi_pb2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("QEFF_QAIC_SIMULATOR", "0.1")
    assert QEfficient.check_qaic_sdk() is False


def test_errors_are_what_scripts_catch() -> None:
    for error, base in (
        (errors.OptionError, ValueError),
        (errors.PromptError, ValueError),
        (errors.UnsupportedModelError, NotImplementedError),
        (errors.CompilationError, RuntimeError),
    ):
        assert issubclass(error, base) and issubclass(error, errors.QEfficientError)


def example_of(document: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (TOP / document).read_text(encoding="utf-8"), re.S | re.M)
    assert blocks, f"{document} shows no Python"
    return "\n".join(blocks)


@pytest.mark.slow
@pytest.mark.skipif(not (demo_folder() / "config.json").exists(), reason="the demo model is not in this checkout")
def test_examples_run_as_they_stand(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's, the quick start's and those of docs/: the first exports what the others find."""
    monkeypatch.setenv("QEFF_HOME", str(tmp_path_factory.mktemp("examples")))
    monkeypatch.delenv("QEFF_DEVICE", raising=False)
    exec(compile(example_of("README.md"), "README.md", "exec"), {"__name__": "readme"})
    first = capsys.readouterr().out
    runpy.run_path(str(TOP / "examples" / "quickstart.py"), run_name="__main__")
    for said in (first, capsys.readouterr().out):
        assert "tokens/sec" in said and len(said.split()) > 30, "it should have written some text, and how fast"
    for document in ("docs/sampling.md", "docs/decodings.md"):
        exec(compile(example_of(document), document, "exec"), {"__name__": "example"})
    said = capsys.readouterr().out
    assert "length [(" in said and re.search(r"\((7, 8|9), 99\) stop", said), said
    exec(compile(example_of("docs/cpu.md"), "docs/cpu.md", "exec"), {"__name__": "cpu"})
    assert "[[' " in capsys.readouterr().out


@pytest.mark.parametrize("package", ["QEfficient", "qaic_simulator"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    """To type checkers, as installed: the file is among those that a wheel gets."""
    code = f"""
from setuptools import Distribution
distribution = Distribution()
distribution.parse_config_files(["pyproject.toml"])
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
build.manifest_files = {{}}  # those of the configuration alone: looking for others writes files
print(*build.find_data_files({package!r}, {package!r}), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    assert f"{package}/py.typed" in done.stdout.split()


def test_the_functions_need_no_torch_before_they_are_called() -> None:
    code = "import sys, QEfficient; QEfficient.compile, QEfficient.check_qaic_sdk(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

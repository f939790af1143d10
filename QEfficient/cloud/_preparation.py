"""From arguments to an exported or compiled program: everything is checked first, then the libraries are loaded."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from QEfficient.artifacts import ArtifactStore
from QEfficient.cloud._arguments import SIMULATED_DEVICE, USUAL, UsageError
from QEfficient.cloud._logging import quieten_libraries
from QEfficient.cloud._presentation import StageClock, note
from QEfficient.cloud._requests import Requests
from QEfficient.demo import DEMO_NAME
from QEfficient.devices import Device, device_class, get_device
from QEfficient.errors import ArtifactError, DeviceError, OptionError, UnsupportedModelError
from QEfficient.program import CompiledProgram, ExportedProgram, load_compiled, load_exported
from QEfficient.specs import PROJECTED, CompileSpec, ExportSpec
from QEfficient.transformers.models.card_options import TARGET, Shapes, check_device, read_qaic_config, shaped

logger = logging.getLogger(__name__)

READ_IN_PART = ("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode", "ccl_enabled")
KINDS = (
    *READ_IN_PART, "num_speculative_tokens", "projections", "prefill_only", "include_sampler", "max_top_k_ids",
    "replicate_kv_heads", "mla_absorption",
)  # fmt: skip
"""Flags for other kinds of calls; a draft model has none of them."""
CARD_OPTIONS = (
    "num_cores", "mxfp6_matmul", "mxint8_kv_cache", "mos", "aic_enable_depth_first", "allow_mxint8_mdp_io",
    "extra_compiler_args",
)  # fmt: skip


DRAFT_CORES = 5
"""Of a card's, for a draft model, if nothing else is said."""

Check = Callable[[CompileSpec, int], None]
"""Refuses what does not go with a geometry, or with a vocabulary of so many tokens."""


def chosen_device(arguments: argparse.Namespace) -> Device:
    """The device that the arguments name. Where it is absent, all that is missing for them is said at once."""
    try:
        return get_device(arguments.device)
    except DeviceError as error:
        raise DeviceError(f"{error}{_lacks_qnn(arguments)}") from error


def _lacks_qnn(arguments: argparse.Namespace) -> str:
    """A sentence, where what --enable-qnn needs besides is not there."""
    from QEfficient.devices.cloud_ai_100.qnn.tools import find_qnn_sdk

    try:
        if arguments.enable_qnn:
            find_qnn_sdk()
    except DeviceError as error:
        return f" Besides, {error}"
    return ""


def model_name(arguments: argparse.Namespace) -> str:
    """The model that the arguments name; the demo if they name none."""
    if arguments.model and arguments.model_name and arguments.model != arguments.model_name:
        raise UsageError(f"two models are named: {arguments.model} and {arguments.model_name}. Give one of them.")
    name: str | None = arguments.local_model_dir or arguments.model_name or arguments.model
    if name is None:
        note("no model named: using the built-in demo model")
    return name or DEMO_NAME


def compile_spec(arguments: argparse.Namespace) -> CompileSpec:
    """The geometry, the kinds of calls and the device's options, validated."""
    check_batch(arguments)
    chunk, usual = arguments.prefill_seq_len, USUAL.prefill_seq_len or 1
    plain = CompileSpec(
        arguments.batch_size,
        min(usual, max(arguments.ctx_len, 1)) if chunk is None else chunk,
        arguments.ctx_len,
        arguments.full_batch_size,
        arguments.kv_cache_batch_size,
        device_options(arguments),
        prefill_only=getattr(arguments, "prefill_only", None),
    )
    try:
        return shaped(plain, Shapes(**shapes(arguments)), read_qaic_config(qaic_config(arguments)))
    except NotImplementedError as error:  # as Qualcomm's library says what does not go together
        raise OptionError(str(error)) from None


def check_batch(arguments: argparse.Namespace) -> None:
    """Refuse two numbers of sequences that run together. Scripts of Qualcomm's library give a batch of 1 with any."""
    rows, full = arguments.batch_size, arguments.full_batch_size
    if full is not None and rows not in (None, 1, full):
        raise UsageError(
            f"--batch-size {rows} and --full-batch-size {full} both say how many sequences run together. Leave"
            " --batch-size out, or give --full-batch-size alone for continuous batching."
        )


def shapes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The kinds of calls that were asked for, in the words of `compile`."""
    names = ("num_speculative_tokens", "comp_ctx_lengths_prefill", "comp_ctx_lengths_decode", "prefill_only")
    found = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def qaic_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """What they need of the graph, in the words of Qualcomm's library."""
    config = given(arguments, ("include_sampler", "max_top_k_ids", "replicate_kv_heads"))
    if "max_top_k_ids" in config and "include_sampler" not in config:
        raise UsageError("--max-top-k-ids goes with --include-sampler.")
    if given(arguments, READ_IN_PART):
        config["ccl_enabled"] = True
    if given(arguments, ("speculative_target", "num_speculative_tokens")):
        config["speculative_model_type"] = TARGET
    if given(arguments, ("projections",)):
        config["speculative_model_type"] = PROJECTED
    if given(arguments, ("mla_absorption",)):
        online = arguments.mla_absorption == "online"
        config["mla_absorption"] = {"cache_compressed": True, "absorption": True, "online": online}
    return config


def device_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the device is told: its flags, and those that no command knows."""
    options = {name: getattr(arguments, name) for name in CARD_OPTIONS}
    if options["mos"] == -1:  # what Qualcomm's library writes for: not said
        options["mos"] = None
    forwarded: dict[str, Any] = dict(arguments.device_options)
    if forwarded.get("num_devices") == 0:  # what scripts pass for none: not said either
        del forwarded["num_devices"]
    if arguments.device_group and "mdp_load_partition_config" not in forwarded:  # that file has the number itself
        _check_number(arguments.device_group, forwarded)
        options["num_devices"] = len(arguments.device_group)
    if arguments.enable_qnn:
        options["enable_qnn"] = True
        options["qnn_config"] = arguments.enable_qnn if isinstance(arguments.enable_qnn, str) else None
    return {name: value for name, value in options.items() if _is_given(value)} | forwarded


def _check_number(devices: list[int], forwarded: dict[str, Any]) -> None:
    """A program runs on as many devices as it was compiled for."""
    number = forwarded.get("num_devices", len(devices))
    if number != len(devices):
        raise UsageError(
            f"--num-devices is {number}, but --device-group names {len(devices)} ({', '.join(map(str, devices))})."
            " Name as many, or leave one of them out."
        )


def given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the options that were given, by name."""
    return {name: value for name in names if _is_given(value := getattr(arguments, name, None))}


def _is_given(value: Any) -> bool:
    """Whether a flag was on the command line: 0, which equals False, was."""
    return value is not None and value is not False


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a model is opened with. Without an explicit no, transformers would ask for consent on the terminal."""
    return {**given(arguments, ("cache_dir", "hf_token", "dtype")), "trust_remote_code": arguments.trust_remote_code}


def tokenizer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a tokenizer is loaded with, in transformers' words."""
    options = {**given(arguments, ("cache_dir",)), "trust_remote_code": arguments.trust_remote_code}
    return {**options, "token": arguments.hf_token} if arguments.hf_token else options


class Preparation:
    """One model on its way to a program."""

    def __init__(self, name: str, arguments: argparse.Namespace, clock: StageClock) -> None:
        self.name = name
        self._arguments = arguments
        self._clock = clock
        self._store = ArtifactStore()
        self._source = source_options(arguments)
        self._graph = given(arguments, ("use_onnx_subfunctions", "retain_full_kv", "kv_cache_prefix", "kv_head_copies"))
        self._config = qaic_config(arguments)
        self._batching = bool(given(arguments, ("full_batch_size", "kv_cache_batch_size", "continuous_batching")))
        ExportSpec(kv_cache_prefix=arguments.kv_cache_prefix)  # refuses a prefix that cannot be one

    def exported(self) -> ExportedProgram:
        """The exported program."""
        requests = self._requests(export_dir=self._arguments.export_dir)
        folder = requests.find("exported")
        if folder is None:
            model = self._open()
            folder = Path(model.export(self._arguments.export_dir, **self._graph)).parent
            requests.keep("exported", folder)
        self._clock.stop()
        return load_exported(folder)

    def compiled(self, check: Check = lambda spec, vocabulary: None, runs: bool = False) -> CompiledProgram:
        """The compiled program. `check` is called before the long work begins; `runs`: it will run on the devices that
        were named, else they only say how many."""
        device, spec = chosen_device(self._arguments), compile_spec(self._arguments)
        check_device(read_qaic_config(self._config), device)
        _say_where(device, self._arguments)
        own = device.own_options(spec.device_options)
        if runs:
            device.check_runs()
        if runs and self._arguments.device_group:
            device.check_ids(own, self._arguments.device_group)
        needs = device.ingredients(own)
        compile_dir = self._arguments.compile_dir
        requests = self._requests(spec=spec, device=device.name, ingredients=needs, compile_dir=compile_dir)
        folder = requests.find("compiled")
        if folder is None or not self._store.is_complete(load_compiled(folder).program.folder):
            model = self._open()
            check(spec, int(model.config.get_text_config().vocab_size))
            folder = self._compile(model, device, spec)
            requests.keep("compiled", folder)
        self._clock.stop()
        return load_compiled(folder)

    def _compile(self, model: Any, device: Device, spec: CompileSpec) -> Path:
        model.compile(
            compile_dir=self._arguments.compile_dir,
            prefill_seq_len=spec.prefill_seq_len,
            ctx_len=spec.ctx_len,
            batch_size=spec.batch_size,
            full_batch_size=spec.full_batch_size,
            kv_cache_batch_size=spec.kv_cache_batch_size,
            device=device.name,
            **shapes(self._arguments),
            **self._graph,
            **spec.device_options,
        )
        self._requests(export_dir=None).keep("exported", Path(model.onnx_path).parent)
        folder: Path = model.compiled.folder
        return folder

    def _requests(self, **more: Any) -> Requests:
        for folder in ("export_dir", "compile_dir"):
            if more.get(folder):
                more[folder] = str(Path(more[folder]).expanduser().absolute())
        graph = {**self._graph, "qaic_config": self._config, "continuous_batching": self._batching}
        options = {**self._source, **graph, **more}
        return Requests(self._store, self.name, options)

    def _open(self) -> Any:
        """The auto-class over the model's files."""
        self._clock("load libraries")
        from QEfficient.transformers.models.modeling_auto import QEFFAutoModelForCausalLM

        quieten_libraries(self._arguments.verbose)
        self._clock("open the model", shown=False)  # downloads have bars of their own
        try:
            model = QEFFAutoModelForCausalLM.from_pretrained(self.name, self._batching, self._config, **self._source)
        except TypeError as error:  # what Qualcomm's library raises for another kind of model
            if "causal language model" not in str(error):
                raise
            raise UnsupportedModelError(str(error)) from None
        model.progress = self._clock
        self._clock("look for the program")
        return model


def _say_where(device: Device, arguments: argparse.Namespace) -> None:
    """A script that is written for a card, and names no device, learns where it runs and why not there."""
    chosen = arguments.device or os.environ.get("QEFF_DEVICE", "auto")
    meant = given(arguments, ("device_group", "enable_qnn", *CARD_OPTIONS))
    if chosen == "auto" and meant and device.name != SIMULATED_DEVICE:
        flags = ", ".join("--" + name.replace("_", "-") for name in meant)
        reason = device_class(SIMULATED_DEVICE).availability()
        lacks = _lacks_qnn(arguments)
        note(f"this runs on the device {device.name}, which has no use for {flags}: {reason}{lacks}")


def share_cores(arguments: argparse.Namespace) -> None:
    """A draft model that is compiled for the model's own card takes some of its cores; refuses more than there are."""
    from QEfficient.cloud._compiled import is_compiled
    from QEfficient.devices.cloud_ai_100.options import CORES

    own, drafts = arguments.num_cores, arguments.draft_num_cores
    if arguments.draft_model is None:
        if drafts is not None:
            raise UsageError("--draft-num-cores goes with --draft-model.")
        return
    if is_compiled(arguments.draft_model) or chosen_device(arguments).name != SIMULATED_DEVICE:
        return
    if own is None and drafts is None:
        drafts = DRAFT_CORES
    own, drafts = own or CORES - drafts, drafts or CORES - own
    if min(own, drafts) < 1 or own + drafts > CORES:
        raise UsageError(
            f"a card has {CORES} cores for the model (--num-cores) and its draft model (--draft-num-cores) together,"
            f" such as {CORES - DRAFT_CORES} and {DRAFT_CORES}; {max(own, 0)} and {max(drafts, 0)} were asked for."
        )
    if (own, drafts) != (arguments.num_cores, arguments.draft_num_cores):
        note(f"of the card's {CORES} cores the model has {own}, the draft model {drafts}")
    arguments.num_cores, arguments.draft_num_cores = own, drafts


def draft_program(arguments: argparse.Namespace, clock: StageClock) -> CompiledProgram:
    """The draft model that the arguments name: compiled already, or made ready as the model is."""
    from QEfficient.cloud._compiled import find_compiled, is_compiled

    name = arguments.draft_model
    plain = argparse.Namespace(**{key: value for key, value in vars(arguments).items() if key not in KINDS})
    plain.num_cores = arguments.draft_num_cores or arguments.num_cores
    return find_compiled(name) if is_compiled(name) else Preparation(name, plain, clock).compiled()


def compile_onnx(arguments: argparse.Namespace, clock: StageClock) -> CompiledProgram:
    """A program compiled from its exported folder, without its model."""
    device, spec = chosen_device(arguments), compile_spec(arguments)
    device.own_options(spec.device_options)
    made = given(arguments, ("include_sampler", "replicate_kv_heads", "projections", "mla_absorption"))
    if made:
        flags = ", ".join("--" + name.replace("_", "-") for name in made)
        raise UsageError(f"{flags} shapes the graph, which --onnx-path names already. Export it so (export --help).")
    path, store = Path(arguments.onnx_path).expanduser(), ArtifactStore()
    if not path.exists():
        raise ArtifactError(f"there is no file {path}. `qefficient export` prints the path of the file that it wrote.")
    program = load_exported(path if path.is_dir() else path.parent)
    store.open(program.folder)
    clock("load libraries")
    from QEfficient.legacy import compile_for_scripts
    from QEfficient.transformers.models.stages import compile_program

    clock("compile")
    if arguments.qpc_path:
        compiled = compile_for_scripts(program, spec, device, arguments.qpc_path, arguments.custom_io_file_path)
    else:
        compiled = compile_program(program, spec, device, store, arguments.compile_dir)
    clock.stop()
    return compiled

"""The functional interface: `transform`, `export`, `compile`. The auto-classes do the same with less to say.

torch is imported when a function is called.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from QEfficient.errors import DeviceError, OptionError
from QEfficient.specs import CompileSpec

if TYPE_CHECKING:
    from QEfficient.devices import Device
    from QEfficient.program import CompiledProgram, ExportedProgram

logger = logging.getLogger(__name__)

FORM_FACTOR = "cloud"


def check_qaic_sdk() -> bool:
    """Whether the runtime of the Cloud AI 100 can be imported here, as a session does it; none is opened."""
    from QEfficient.devices.cloud_ai_100.inference_session import load_runtime

    try:
        load_runtime()
    except (ImportError, DeviceError):
        return False
    return True


def transform(model: Any, form_factor: str = FORM_FACTOR) -> Any:
    """Prepare a transformers model for export and return it. **The model itself is changed**: it goes to evaluation
    mode, and its attention and experts become those that can be traced.

    Only scripts that call it already need this: `export` and the auto-classes work on a copy, and prepare that.
    """
    import torch

    from QEfficient.transformers.transform import install_seams

    _check_form_factor(form_factor)
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"transform takes a transformers model, not {type(model).__name__}.")
    install_seams(model.eval())
    return model


def export(
    model_name: str,
    model_kv: Any = None,
    local_model_dir: str | None = None,
    tokenizer: Any = None,
    cache_dir: str | None = None,
    onnx_dir_path: str | None = None,
    hf_token: str | None = None,
    seq_length: int = 32,
    kv: bool = True,
    form_factor: str = FORM_FACTOR,
    full_batch_size: int | None = None,
) -> tuple[str, str]:
    """Export a causal language model; returns the folder and the path of the ONNX file.

    `model_kv`, a model object, goes before `local_model_dir`, and that before `model_name`. `full_batch_size` asks for
    continuous batching. The graph holds for every length, so `seq_length` has no effect; neither has `tokenizer`.
    """
    from QEfficient.transformers.models.modeling_auto import QEFFAutoModelForCausalLM

    _check_form_factor(form_factor)
    if not kv:
        raise OptionError("kv=False was asked for: a program without retained keys and values is not exported.")
    if full_batch_size is not None and full_batch_size < 1:
        raise OptionError(f"full_batch_size must be a positive whole number, not {full_batch_size}.")
    model = model_kv
    if isinstance(model, QEFFAutoModelForCausalLM):
        if full_batch_size is not None and not model.continuous_batching:
            raise OptionError(
                f"full_batch_size {full_batch_size} was asked for, but the model in model_kv was loaded without"
                " continuous batching. Load it with continuous_batching=True, or pass the model of transformers."
            )
    else:
        hub = {"cache_dir": cache_dir, "token": hf_token} if model is None else {}
        options: dict[str, Any] = {name: value for name, value in hub.items() if value is not None}
        source = model if model is not None else local_model_dir or model_name
        model = QEFFAutoModelForCausalLM.from_pretrained(source, full_batch_size is not None, **options)
    path = model.export(onnx_dir_path)
    return str(Path(path).parent), path


qualcomm_efficient_converter = export


def compile(
    onnx_path: str | Path,
    qpc_path: str | Path,
    num_cores: int,
    device_group: list[int] | None = None,
    aic_enable_depth_first: bool = False,
    mos: int | list[int] = -1,
    batch_size: int = 1,
    prompt_len: int = 32,
    ctx_len: int = 128,
    mxfp6: bool = True,
    mxint8: bool = False,
    custom_io_file_path: str | None = None,
    full_batch_size: int | None = None,
    allow_mxint8_mdp_io: bool = False,
    enable_qnn: bool = False,
    qnn_config: str | None = None,
    **options: Any,
) -> str:
    """Compile an exported program; returns the folder of the compiled one.

    For a card that is `qpcs` inside `qpc_path`; beside it lie specializations.json and, for several devices,
    mdp_ts_config.json. What this function left there before is replaced. For other devices, which `device=` chooses as
    in the auto-classes, it is a folder of its own inside `qpc_path`.
    """
    from QEfficient.artifacts import ArtifactStore
    from QEfficient.devices import get_device
    from QEfficient.program import load_exported
    from QEfficient.transformers.models import stages

    device = get_device(options.pop("device", None))
    card = {
        "num_cores": num_cores,
        "num_devices": len(device_group or [0]),
        "aic_enable_depth_first": aic_enable_depth_first,
        "mos": None if mos == -1 else mos,  # which leaves it to the compiler
        "mxfp6_matmul": mxfp6,
        "mxint8_kv_cache": mxint8,
        "allow_mxint8_mdp_io": allow_mxint8_mdp_io,
        "enable_qnn": enable_qnn,
        "qnn_config": qnn_config,
        **options,
    }
    asked = {name: value for name, value in card.items() if value is not None and value is not False}
    spec = CompileSpec(batch_size, prompt_len, ctx_len, full_batch_size, device_options=asked)
    program = load_exported(ArtifactStore().open(Path(onnx_path).parent))
    stages.check_batching(program.graphs["lm"].spec.continuous_batching, spec)
    return str(device.output(compile_for_scripts(program, spec, device, qpc_path, custom_io_file_path).folder))


def compile_for_scripts(
    program: ExportedProgram,
    spec: CompileSpec,
    device: Device,
    qpc_path: str | Path,
    custom_io_file_path: str | Path | None = None,
) -> CompiledProgram:
    """Compile into `qpc_path`, where scripts look for it."""
    from QEfficient.artifacts import ArtifactStore
    from QEfficient.old_place import OldPlace
    from QEfficient.transformers.models import stages

    custom_io = Path(custom_io_file_path).expanduser() if custom_io_file_path is not None else None
    old = device.for_scripts(custom_io)
    if old is not None:
        place = OldPlace(qpc_path)
        return place.show(stages.compile_program(program, spec, old, place, qpc_path))
    if custom_io is not None:
        logger.info("custom_io_file_path=%s is not read: it follows from the other options.", custom_io)
    return stages.compile_program(program, spec, device, ArtifactStore(), qpc_path)


def _check_form_factor(form_factor: str) -> None:
    if form_factor != FORM_FACTOR:
        raise OptionError(f"form_factor '{form_factor}' was asked for, but there is only '{FORM_FACTOR}'.")

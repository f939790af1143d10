"""`write_program`: a retained module becomes a folder with an ONNX file and its weights.

1. trace      the module with fake weights, into a graph with the contract's names
2. bodies     the Scan of every recurrent node, the portable body of every custom operator
3. passes     layers as functions if the spec asks for it; fold, clean, and what else it asks for
4. check      the graph against its GraphSpec
5. weights    streamed into external data
6. write      the ONNX file
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from QEfficient.errors import ExportError
from QEfficient.graph import passes
from QEfficient.graph.checks import check_graph
from QEfficient.graph.recurrent import recurrent_function
from QEfficient.graph.subfunctions import layers_to_functions
from QEfficient.graph.tracing import trace_causal
from QEfficient.graph.weights import ExternalData, place_initializers, withhold, write_weights
from QEfficient.program import Context, Graph, GraphSpec
from QEfficient.specs import ExportSpec

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass
class Source:
    """What is exported, and where its weights come from."""

    module: torch.nn.Module
    """A retained module over fake parameters."""
    graph: GraphSpec
    stem: str
    """The ONNX file's name without its ending."""
    stream: Callable[[Callable[[str, Any], None]], None]
    """Hands over (parameter name, tensor), in any order."""
    aliases: Mapping[str, tuple[str, ...]]
    """Parameter name → every name that its storage may have in the traced module (tied weights have several)."""
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Bodies of recurrent nodes, filled while the module is traced."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """How the layers keep their state, for the manifest."""
    trace: Callable[[torch.nn.Module, GraphSpec], tuple[ir.Model, Context]] = trace_causal
    """Makes the graph of `module`, with the contract's names; and says which contexts it holds for."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """Path in `module` → class name of every decoder layer, for sub-functions."""
    transforms: tuple[str, ...] = ()
    """What was done to the model to make `module` of it, by name."""


def write_program(source: Source, spec: ExportSpec, folder: Path, progress: Progress = lambda _: None) -> Graph:
    """Write `<stem>.onnx` and its data into `folder`."""
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        progress(name)
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    model, context = stage("trace", lambda: source.trace(source.module, source.graph))
    defaults = withhold(model, source.module.state_dict().keys())
    stage("bodies", lambda: _add_recurrent(model, source))
    if spec.subfunctions:
        stage("subfunctions", lambda: layers_to_functions(model, source.layers))
    stage("passes", lambda: [run(model) for run in passes.passes_for(spec)])
    stage("check", lambda: check_graph(model, source.graph))
    stage("weights", lambda: _write_weights(model, source, spec, folder, defaults))
    stage("write", lambda: _save(model, source, spec, folder))
    whole = replace(source.graph.context, multiple_of=context.multiple_of, largest=context.largest)
    logger.info("export of %s: %s", source.stem, seconds)
    return Graph(_file(source), replace(source.graph, context=whole))


def graph_transforms(spec: ExportSpec) -> list[str]:
    """What is done to the traced graph, by name and in order."""
    first = [layers_to_functions] if spec.subfunctions else []
    return [run.__name__ for run in [*first, *passes.passes_for(spec)]]


def _file(source: Source) -> str:
    return f"{source.stem}.onnx"


def _add_recurrent(model: ir.Model, source: Source) -> None:
    for record in source.steps.values():
        function = recurrent_function(record)
        model.functions[function.identifier()] = function


def _write_weights(
    model: ir.Model, source: Source, spec: ExportSpec, folder: Path, defaults: Mapping[str, ir.TensorProtocol]
) -> None:
    data = ExternalData(folder, source.stem, spec.split_tensors, passes.HALF_MAX if spec.clip_fp16 else None)
    ready = place_initializers(model, data)
    data.allocate()
    write_weights(data, ready, defaults, source.stream, source.aliases)


def _save(model: ir.Model, source: Source, spec: ExportSpec, folder: Path) -> None:
    model.ir_version = 10
    model.producer_name = "QEfficient"
    model.metadata_props["qeff_transforms"] = ",".join(graph_transforms(spec))
    _forget_origins(model)
    path = folder / _file(source)
    ir.save(model, path)
    if path.stat().st_size >= 2**31:
        raise ExportError(f"{path.name} has {path.stat().st_size:,} bytes; ONNX files must stay below 2 GiB.")


def _forget_origins(model: ir.Model) -> None:
    """Drop the stack traces that the tracer left at each node: paths of this machine, and most of the file's size."""
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        for node in graph.all_nodes():
            node.metadata_props.clear()

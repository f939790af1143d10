"""The file between QNN's two tools, in a form of our own: an archive of the network, its data, and what was asked for.

Like the real one it needs nothing of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from qaic_simulator.program_file import external_files
from qaic_simulator.qnn.custom_io import Conversion, Tensor
from qaic_simulator.qnn.rules import refuse

MARK = "qairt-converter, simulated"
RECORD, NETWORK = "record.json", "network.onnx"


def write_converted(conversion: Conversion) -> None:
    """Write the converted file; nothing has its name before all of it is there. The same bytes for the same network."""
    unfinished = conversion.output.with_name(f".{conversion.output.name}.unfinished")
    model = onnx.load(conversion.network, load_external_data=False)
    folder = conversion.network.parent
    files = {str(path.relative_to(folder)): path for path in external_files(model, folder)}
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            archive.writestr(zipfile.ZipInfo(RECORD), json.dumps(_record(conversion), indent=1))
            for name, path in {NETWORK: conversion.network, **files}.items():
                _add(archive, name, path)
        unfinished.replace(conversion.output)
    finally:
        unfinished.unlink(missing_ok=True)


def _record(conversion: Conversion) -> dict[str, Any]:
    return {
        "made_by": MARK,
        "network": str(conversion.network),
        "sha256": hashlib.sha256(conversion.network.read_bytes()).hexdigest(),
        "inputs": [asdict(tensor) for tensor in conversion.inputs],
        "outputs": [asdict(tensor) for tensor in conversion.outputs],
    }


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Piece by piece, and without the time of the file: the bytes depend on what it holds alone."""
    with path.open("rb") as source, archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target)


def read_converted(path: Path) -> Conversion:
    """What the stand-in for the converter was asked for."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = json.loads(archive.read(RECORD))
        if record["made_by"] != MARK:
            raise ValueError
        inputs, outputs = (tuple(_tensor(item) for item in record[key]) for key in ("inputs", "outputs"))
        if not inputs:
            raise ValueError
        return Conversion(Path(record["network"]), path, inputs, outputs)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError, NotImplementedError):
        refuse("qnn.dlc", f"{path.name} was not written by the stand-in for qairt-converter.")


def _tensor(record: Mapping[str, Any]) -> Tensor:
    return Tensor(record["name"], record["dtype"], tuple(tuple(shape) for shape in record["shapes"]))


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The network of a converted file, with its data beside it, for as long as the block runs."""
    with TemporaryDirectory(prefix="qnn-converted-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
                expected = json.loads(archive.read(RECORD))["sha256"]
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError):
            refuse("qnn.dlc", f"{path.name} is damaged: convert the network again.")
        network = Path(folder) / NETWORK
        if not network.is_file() or hashlib.sha256(network.read_bytes()).hexdigest() != expected:
            refuse("qnn.dlc", f"{path.name} is damaged: convert the network again.")
        yield network

"""safetensors → GGUF in f16, and from there llama.cpp's own quantization.

python -m benchmarks.conversion.gguf_file MODEL OUT             f16
python -m benchmarks.conversion.gguf_file MODEL OUT q8_0 F16    from the folder of the f16 one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.conversion import write_record

FILE = "model.gguf"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.weight"


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of a query or key projection in llama.cpp's order: the two halves that are rotated together, in pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_f16(model: Path, out: Path) -> None:
    import gguf
    import numpy
    from safetensors import safe_open

    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out / FILE), "llama")
    _write_header(writer, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                value = tensors.get_tensor(name).float().numpy()
                projection = name.split(".")[-2]
                if projection in heads:
                    value = interleaved(value, heads[projection])
                # Vectors (the norms) stay in float32, as llama.cpp's converter leaves them
                writer.add_tensor(gguf_name(name), value if value.ndim == 1 else value.astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_header(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # Tokens go in and come out as numbers
    writer.add_tokenizer_model("none")


def quantize(source: Path, out: Path, kind: str) -> None:
    """What `llama-quantize` does, with its defaults: a tied head becomes Q6_K beside Q4_0."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
    status = llama_cpp.llama_model_quantize(str(source / FILE).encode(), str(out / FILE).encode(), parameters)
    if status:
        raise RuntimeError(f"llama.cpp's quantization to {kind} ended with {status}")


def record(out: Path) -> None:
    import gguf

    tensors = gguf.GGUFReader(out / FILE).tensors
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in tensors}
    total = sum(sizes.values())
    # With a head of its own the embedding is only looked up; a tied one is the head
    read = total - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
    write_record(out, total, read, head=next(t.tensor_type.name for t in tensors if t.name == _head(sizes)))


def _head(sizes: dict[str, int]) -> str:
    return "output.weight" if "output.weight" in sizes else "token_embd.weight"


def main(model: str, out: str, kind: str = "f16", source: str = "") -> None:
    folder = Path(out)
    if kind == "f16":
        write_f16(Path(model), folder)
    else:
        quantize(Path(source), folder, kind)
    record(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])

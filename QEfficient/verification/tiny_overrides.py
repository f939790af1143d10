"""Config values of tiny models that the general rule of :mod:`tiny_models` cannot find, by model type.

A value for a sub-config is a dict; it may name another `model_type` for it. What several types share has a name.
"""

from __future__ import annotations

from typing import Any

SLIDING_FULL = ["sliding_attention", "full_attention"]
FULL_SLIDING = ["full_attention", "sliding_attention"]
LINEAR_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
DENSE_SPARSE = ["dense", "sparse"]
# positions are counted from the padding id on
PADDED: dict[str, Any] = {"pad_token_id": 1}
# the second pair of layers reads the keys and values of the first pair
SHARED_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": SLIDING_FULL * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 256,
    "hidden_size_per_layer_input": 16,
}
# the multimodal classes replace the placeholders of images by the padding id
GEMMA4: dict[str, Any] = {"pad_token_id": 0, "head_dim": 16, "global_head_dim": 32}
GEMMA4_ASSISTANT: dict[str, Any] = {
    "backbone_hidden_size": 64,
    "num_centroids": 16,
    "text_config": {
        **GEMMA4,
        "num_hidden_layers": 2,
        "layer_types": SLIDING_FULL,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    },
}
LLAMA4: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "moe_layers": [1],
    "floor_scale": 8,  # so that the attention temperature changes in a short run
}
QWEN4: dict[str, Any] = {
    "head_dim": 16,
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ple_layer_ids": [1],
    "ple_embed_dim": 32,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 4,
    "eos_token_id": 1,  # its n-grams stop there
}
# with one codebook it takes ids like a language model
MUSICGEN: dict[str, Any] = {"decoder": {"num_codebooks": 1, "pad_token_id": 256, "bos_token_id": 256}}

# multipliers that are 1 by default and are not in the published checkpoints
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
GRANITE_SHARED: dict[str, Any] = {**GRANITE, "shared_intermediate_size": 80}

# The seed that is added, by what it is: with it the two best logits keep a distance at each of 24 greedy steps (more
# than a thousandth of the range of the logits), and the tokens vary. Found by trying.
SEEDS: dict[int, str] = {
    1: (
        "afmoe bart beam bloom cohere deepseek_v32 deepseek_v4 falcon_mamba gemma3n_text gemma4_unified glm4 "
        "glm_moe_dsa granitemoe granitemoehybrid helium hy_v3 hyperclovax inkling_text internlm3 iquestcoder "
        "llama llama4 llama4_text marian megatron-bert modernbert-decoder mvp olmo_hybrid qwen2_moe roc_bert "
        "seed_oss stablelm xlm-roberta-xl"
    ),
    2: (
        "arcee cohere2 ernie4_5 gemma3_text gemma3n glm4_moe hunyuan_v1_dense hy_v4 inkling2_text lfm2 "
        "lfm2_moe mamba2 minicpm3 ministral mistral mpt musicgen_melody nemotron olmo2 persimmon phimoe "
        "qwen3_5_moe qwen3_5_moe_text xlnet"
    ),
    3: (
        "bert bitnet dbrx emu3 ernie gemma2 gemma4_text git gpt_neo granite_swa granitemoeshared laguna "
        "mixtral phi4_multimodal plbart qwen3 youtu"
    ),
    4: (
        "axk1 bert-generation blenderbot-small camembert cohere_compass_text ctrl flex_olmo "
        "gemma4_unified_text gptj hrm_text minimax moshi musicgen phi3 qwen3_5 qwen3_5_text qwen4_exp "
        "qwen4_exp_text rembert xglm xlm-roberta"
    ),
    5: "apertus cohere2_moe cwm data2vec-text falcon_h1 flint hunyuan_v1_moe jais2 lfm3 olmo roberta zaya",
    6: (
        "axk2 bigbird_pegasus blt dots3_note dots3_note_text fuyu gpt_oss granitemoe_swa longcat_flash "
        "ministral3 openai-gpt"
    ),
    7: "biogpt exaone_moe gpt_bigcode nanochat xlm",
    8: "bailing_hybrid electra mbart",
    9: "gemma gpt-sw3 gpt2 mamba mllama",
    10: "deepseek_v2 deepseek_v3 whisper",
    11: "exaone4 starcoder2 vaultgemma",
    12: "codegen gemma3 gpt_neox recurrent_gemma solar_open",
    13: "reformer roformer",
}
# The gain of the matrices, where the usual one gives the same few tokens again and again.
GAINS: dict[float, str] = {
    3.0: (
        "bamba cohere_compass_text cpmant dots3_note dots3_note_text falcon granite_swa inkling2_text "
        "kolibri1 mpt musicgen roc_bert xglm zaya"
    ),
    4.0: "bloom ctrl musicgen_melody nanochat",
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blenderbot": {"max_position_embeddings": 512},
    "blt": {
        "patcher_config": {"num_key_value_heads": 4},
        "encoder_config": {"hidden_size_global": 128, "num_key_value_heads": 4},
        "decoder_config": {"hidden_size_global": 128, "num_key_value_heads": 4},
        "global_config": {"hidden_size": 128, "num_key_value_heads": 4},
        "encoder_hash_byte_group_vocab": 64,
        "patching_threshold": 4.0,  # about the middle of the entropies that a random patcher gives
    },
    "camembert": PADDED,
    "cohere_compass_text": {
        "num_hidden_layers": 2,
        "layer_types": SLIDING_FULL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "data2vec-text": PADDED,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 112, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "doge": {"keep_window_size": 8},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 16},
    },
    "dots3_note_text": {
        **{f"swa_num_{name}_heads": 4 for name in ("attention", "key_value")},
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 48,
        "swa_head_dim": 28,
        "swa_qk_nope_head_dim": 20,
        "swa_v_head_dim": 12,
    },
    "gemma2": {"attn_logit_softcapping": 5.0},
    "gemma3n": {  # a stand-in for its vision tower, which needs timm; text does not pass there
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vocab_size": 8,
            "vocab_offset": 256,
            "rms_norm_eps": 1e-6,
        },
        "audio_config": {"vocab_size": 8, "vocab_offset": 264},
    },
    "gemma3n_text": {
        **SHARED_LAYERS,
        "intermediate_size": [112] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4": {
        "text_config": {  # as the larger checkpoints: experts, keys used as values, no per-layer inputs
            **GEMMA4,
            "num_hidden_layers": 2,
            "layer_types": SLIDING_FULL,
            "num_kv_shared_layers": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
    },
    "gemma4_assistant": GEMMA4_ASSISTANT,
    "gemma4_text": {**GEMMA4, **SHARED_LAYERS},
    "gemma4_unified_assistant": GEMMA4_ASSISTANT,
    "gemma4_unified_text": GEMMA4,
    "falcon_h1": {  # 1 by default
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "mlp_multipliers": [0.8, 1.2],
        "key_multiplier": 0.7,
        "attention_in_multiplier": 1.1,
        "attention_out_multiplier": 1.5,
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.6,
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
    },
    "flint": {"mlp_only_layers": [0]},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granite": GRANITE,
    "granite_swa": {**GRANITE, "layer_rope_theta": [0, 10000.0]},  # the full layer without rotary positions
    "granitemoe": GRANITE,
    "granitemoe_swa": {**GRANITE_SHARED, "layer_rope_theta": [0, 10000.0]},
    "granitemoeshared": GRANITE_SHARED,
    "granitemoehybrid": {**GRANITE, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 16, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 16, "num_key_value_heads": 2, "num_experts": 4, "moe_topk": 2},
    "inkling2_text": {"log_scaling_n_floor": 8, "rel_extent": 16, "n_layers_per_attn_res_block": 1},
    "inkling_text": {"log_scaling_n_floor": 8, "rel_extent": 16},
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {
        "num_hidden_layers": 2,
        "layer_types": FULL_SLIDING,
        "mlp_layer_types": DENSE_SPARSE,
        "num_attention_heads_per_layer": [4, 8],
    },
    "lfm2": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "full_attn_idxs": [1],
        "block_multiple_of": 16,
    },
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "llama4": {"text_config": LLAMA4},
    "llama4_text": LLAMA4,
    "longcat_flash": {"num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": {"num_hidden_layers": 2, "layer_types": FULL_SLIDING, "mlp_layer_types": ["sparse"] * 2},
    "minimax": {"block_size": 8},
    "minimax_m3_vl_text": {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": DENSE_SPARSE,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "rotary_dim": 16,
    },
    "ministral": {"head_dim": 16},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 32,  # so that the attention temperature changes in a short run
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0}},
    # transformers 5.23 slides the window of the cache but not of the mask: keep the window out of reach
    "moshi": {"sliding_window": 256},
    "musicgen": MUSICGEN,
    "musicgen_melody": MUSICGEN,
    "nemotron_h": {"time_step_min": 1e-6},  # as for zamba2
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": {"pad_token_id": 0},
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 2, "block_types": ["recurrent", "attention"], "lru_width": 64},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "hash_seed": 0,
        "num_buckets": 4,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
        "attention_head_size": 16,
        "pad_token_id": 0,
    },
    "roberta": PADDED,
    "roberta-prelayernorm": PADDED,
    "rwkv": {"rescale_every": 1},
    "roc_bert": {
        "shape_vocab_size": 256,
        "pronunciation_vocab_size": 256,
        "shape_embed_dim": 24,
        "pronunciation_embed_dim": 40,
    },
    "vaultgemma": {"attn_logit_softcapping": 5.0},
    "xlm": {"causal": True},
    "xlm-roberta": PADDED,
    "xlm-roberta-xl": PADDED,
    "xlnet": {"attn_type": "uni"},
    "xlstm": {"hidden_size": 128},  # the widths of queries and keys are rounded up to 64
    "xmod": {**PADDED, "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": LINEAR_HYBRID,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": LINEAR_HYBRID,
        "time_step_min": 1e-6,  # transformers 5.23 clamps to it in prefill but not in decode
    },
    "zaya": {
        "num_hidden_layers": 2,
        "layer_types": ["hybrid", "hybrid_sliding"],
        "sliding_window": 8,
        "router_hidden_size": 32,
    },
}

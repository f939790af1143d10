"""Train the small Llama model that the package ships as its built-in ``demo`` model.

Run it from the root of the repository (about 15 to 20 minutes on two idle CPU cores)::

    python scripts/train_demo_model.py                      # public-domain text from a Debian package
    python scripts/train_demo_model.py --text my_prose.txt  # any UTF-8 text, paragraphs split by blank lines

Without ``--text`` the World English Bible (public domain) is taken from the Debian package
``sword-text-web``, which needs ``apt-get`` and ``dpkg-deb``. The last 2% of the text is held out: neither
the tokenizer nor the model is trained on it. Everything is seeded, so the same library versions on the same
kind of CPU give the same files.
"""

import argparse
import hashlib
import math
import platform
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEBIAN_PACKAGE = "sword-text-web"
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCAB_SIZE = 2048
CONTEXT = 1024
BATCH_TOKENS = 4096
LONG_WINDOW_FROM = 0.8  # the share of the steps after which windows grow from SHORT_WINDOW to CONTEXT
SHORT_WINDOW = 256
EVAL_WINDOW = 512
PASSAGE_CHARS = 1200  # paragraphs are grouped into passages of at least this many characters, each ended by EOS
HELD_OUT_SHARE = 0.02
HELD_OUT_FILE_BYTES = 32_000
SAMPLE_PROMPTS = ("In the beginning", "And the king said", "My name is")
ASCII = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "…": "...", "\u00a0": " "})


# ---------------------------------------------------------------------------------------------- text


def sword_entries(folder: Path):
    """The verses and headings of a SWORD zText module (an index into zlib-compressed blocks), in order."""
    for testament in ("ot", "nt"):
        index, verses, packed = ((folder / f"{testament}.{kind}").read_bytes() for kind in ("bzs", "bzv", "bzz"))
        blocks = [
            zlib.decompress(packed[at : at + size]) if size else b""
            for at, size, _ in struct.iter_unpack("<III", index)
        ]
        for block, at, size in struct.iter_unpack("<IIH", verses):
            if size:
                yield blocks[block][at : at + size].decode("utf-8")


def osis_to_text(entries) -> str:
    """Running prose out of OSIS markup: no verse numbers, notes or titles; a blank line between paragraphs."""
    parts = [re.split(r'<div [^>]*type="(?:front|introduction|glossary)"', entry)[0] for entry in entries]
    text = " ".join(parts)
    text = re.sub(r"<(note|title|speaker)\b.*?</\1>", " ", text, flags=re.S)
    text = re.sub(r'<(?:div|lb) [^>]*type="x-p"[^>]*/>|<chapter [^>]*/>|</?lg\b[^>]*>', "\n\n", text)
    text = re.sub(r"</?(?:w|q|seg|name)\b[^>]*>", "", text)
    return re.sub(r"<[^>]+>", " ", text)


def debian_text() -> tuple[str, str]:
    """The text of the Debian package, and one line that says where it is from."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["apt-get", "download", "-qq", DEBIAN_PACKAGE], cwd=folder, check=True)
        deb = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb.name, "root"], cwd=folder, check=True)
        version = subprocess.check_output(["dpkg-deb", "-f", deb.name, "Version"], cwd=folder, text=True).strip()
        module = next(folder.glob("root/usr/share/sword/modules/**/ot.bzs")).parent
        return osis_to_text(sword_entries(module)), f"World English Bible (Debian package {DEBIAN_PACKAGE} {version})"


def clean_paragraphs(text: str) -> list[str]:
    """One line per paragraph: plain quotes and dashes, single spaces, no space before punctuation."""
    paragraphs = (" ".join(part.translate(ASCII).split()) for part in re.split(r"\n\s*\n", text))
    return [re.sub(r" +([,.;:!?])", r"\1", part) for part in paragraphs if len(part) > 1]


def split_held_out(paragraphs: list[str]) -> tuple[list[str], list[str]]:
    """The paragraphs to train on, and the last ones, which are held out."""
    remaining = HELD_OUT_SHARE * sum(map(len, paragraphs))
    cut = len(paragraphs)
    while remaining > 0:
        cut -= 1
        remaining -= len(paragraphs[cut])
    return paragraphs[:cut], paragraphs[cut:]


def first_bytes(paragraphs: list[str], limit: int) -> str:
    """As many whole paragraphs from the start as fit into ``limit`` bytes."""
    text = ""
    for paragraph in paragraphs:
        if len(f"{text}{paragraph}\n".encode()) > limit:
            break
        text += paragraph + "\n"
    return text


def passages(paragraphs: list[str]):
    """Paragraphs grouped into passages of at least ``PASSAGE_CHARS`` characters."""
    group: list[str] = []
    for paragraph in paragraphs:
        group.append(paragraph)
        if sum(map(len, group)) >= PASSAGE_CHARS:
            yield "\n".join(group)
            group = []
    if group:
        yield "\n".join(group)


# ------------------------------------------------------------------------------- tokenizer and model


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts the bos token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of about 2.2 million parameters with grouped-query attention."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def token_stream(tokenizer: PreTrainedTokenizerFast, paragraphs: list[str]) -> torch.Tensor:
    """All passages as one row of token ids, each passage followed by eos."""
    rows = tokenizer(list(passages(paragraphs)), add_special_tokens=False, verbose=False).input_ids
    return torch.tensor([token for row in rows for token in (*row, tokenizer.eos_token_id)])


# ------------------------------------------------------------------------------------------ training


def batches(stream: torch.Tensor, window: int, bos: int, rng: np.random.Generator):
    """Batches of (inputs, targets) without end; every epoch cuts the stream at other places."""
    rows = BATCH_TOKENS // window
    while True:
        shifted = stream[rng.integers(window) :]
        targets = shifted[: len(shifted) // window * window].view(-1, window)
        inputs = torch.cat([torch.full((len(targets), 1), bos), targets[:, :-1]], dim=1)
        order = torch.from_numpy(rng.permutation(len(targets)))
        for chosen in order[: len(order) // rows * rows].view(-1, rows):
            yield inputs[chosen], targets[chosen]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A linear warm-up over the first 4% of the steps, then a cosine down to 1% of the peak."""
    warmup = max(1, steps // 25)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def make_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_step(model, optimizer, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """One optimiser step in bfloat16 autocast (weights stay float32); returns the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def train(model, tokenizer, stream: torch.Tensor, held_out: str, args: argparse.Namespace) -> None:
    """Train in place; report the held-out perplexity every ``--report`` steps."""
    rng = np.random.default_rng(args.seed)
    short, long = (batches(stream, window, tokenizer.bos_token_id, rng) for window in (SHORT_WINDOW, CONTEXT))
    optimizer = make_optimizer(model)
    started = time.time()
    progress = tqdm(range(args.steps), disable=not sys.stdout.isatty(), file=sys.stdout, unit="step")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = train_step(model, optimizer, *next(long if step >= LONG_WINDOW_FROM * args.steps else short))
        if (step + 1) % args.report == 0 or step + 1 == args.steps:
            perplexity = math.exp(mean_loss(model, tokenizer, held_out))
            progress.write(
                f"step {step + 1:5d}  {time.time() - started:6.0f} s  train loss {loss:.3f}  "
                f"held-out perplexity {perplexity:.2f}"
            )
            sys.stdout.flush()


@torch.no_grad()
def mean_loss(model, tokenizer, text: str, window: int = EVAL_WINDOW) -> float:
    """Mean loss in nats per token: windows of bos and ``window - 1`` tokens of text, every token counted once."""
    total, count = 0.0, 0
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    for targets in ids.split(window - 1):
        inputs = torch.cat([torch.tensor([tokenizer.bos_token_id]), targets[:-1]])[None]
        logits = model(input_ids=inputs, use_cache=False).logits[0].float()
        total += cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total / count


# -------------------------------------------------------------------------------------------- output


def save(model, tokenizer, held_out: str, output: Path) -> None:
    """Write the model (as float16), the tokenizer and the held-out text."""
    output.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "held_out.txt").write_text(held_out, encoding="utf-8")


def sample_lines(model, tokenizer) -> list[str]:
    """A greedy and a sampled continuation of each prompt."""
    lines = []
    for prompt in SAMPLE_PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        for how in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 40}):
            output = model.generate(**inputs, max_new_tokens=48, **how)[0]
            text = tokenizer.decode(output, skip_special_tokens=True)
            lines.append(f"- {'sampled' if how['do_sample'] else 'greedy'}: {' '.join(text.split())}")
    return lines


def held_out_figures(model, tokenizer, text: str) -> dict[str, str]:
    """The perplexities of ``text``, measured in float32 with the files as saved."""
    tokens, words, size = (
        len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids),
        len(text.split()),
        len(text.encode()),
    )
    nats = mean_loss(model, tokenizer, text) * tokens
    others = {window: math.exp(mean_loss(model, tokenizer, text, window)) for window in (128, 256, CONTEXT)}
    return {
        "`held_out.txt`": f"{size} bytes, {words} words, {tokens} tokens",
        f"Perplexity per token (windows of {EVAL_WINDOW})": f"{math.exp(nats / tokens):.3f}",
        "Perplexity per token at other windows": ", ".join(f"{ppl:.3f} ({w})" for w, ppl in others.items()),
        "Perplexity per word": f"{math.exp(nats / words):.1f}",
        "Bits per byte": f"{nats / math.log(2) / size:.3f}",
    }


def write_readme(output: Path, facts: dict[str, str], samples: list[str]) -> None:
    """Record where the files come from and what was measured."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    (output / "README.md").write_text(
        f"""# The built-in demo model

A very small Llama, made by `scripts/train_demo_model.py`, so that the package can be tried and tested without
downloading anything. It writes recognisable English sentences in the style of its training text; it knows nothing.

| | |
|---|---|
{rows}

How the perplexity is measured: `held_out.txt` is tokenised without special tokens and cut into consecutive windows;
each window is the bos token followed by the next tokens (511 of them for a window of 512), and every token of the
text is predicted exactly once. The weights are float16 on disk and were loaded as float32.

The training text was reduced to paragraphs of plain ASCII quotes and dashes without verse numbers, notes and
titles, so it is not the World English Bible as published; "World English Bible" is a trademark of eBible.org.

Continuations (greedy, and sampled at temperature 0.7, top-k 40):

{chr(10).join(samples)}
""",
        encoding="utf-8",
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a UTF-8 text file (default: from a Debian package)")
    parser.add_argument("--licence", default="public domain", help="the licence of the text, for the README")
    parser.add_argument("--output", type=Path, default=Path("QEfficient/demo"))
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--lr", type=float, default=3e-3, help="the peak learning rate")
    parser.add_argument("--report", type=int, default=200, help="steps between two held-out perplexities")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if not sys.stdout.isatty():
        transformers.utils.logging.disable_progress_bar()
    started, cpu_started = time.time(), time.process_time()

    text, source = (args.text.read_text(encoding="utf-8"), args.text.name) if args.text else debian_text()
    train_part, held_out_part = split_held_out(clean_paragraphs(text))
    held_out = first_bytes(held_out_part, HELD_OUT_FILE_BYTES)
    tokenizer = train_tokenizer(train_part)
    stream = token_stream(tokenizer, train_part)
    model = new_model(tokenizer)
    print(
        f"{source}: {len(train_part)} paragraphs, {len(stream)} tokens; {model.num_parameters()} parameters", flush=True
    )

    train(model, tokenizer, stream, held_out, args)
    seconds, cpu_seconds = time.time() - started, time.process_time() - cpu_started
    save(model, tokenizer, held_out, args.output)

    tokenizer = AutoTokenizer.from_pretrained(args.output)
    model = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    samples = sample_lines(model, tokenizer)
    cleaned = "\n".join(train_part + held_out_part)
    facts = {
        "Text": source,
        "Licence of the text": args.licence,
        "Text after cleaning": f"{len(cleaned.encode())} bytes, sha256 {hashlib.sha256(cleaned.encode()).hexdigest()}",
        "Parameters": f"{model.num_parameters():,} (tied embeddings)",
        "Tokenizer": f"byte-level BPE, {len(tokenizer)} tokens",
        "Training tokens": f"{len(stream):,} in the text; {args.steps * BATCH_TOKENS:,} seen",
        "Training steps": f"{args.steps} of {BATCH_TOKENS} tokens; AdamW, peak learning rate {args.lr:g}, cosine",
        "Windows": f"{SHORT_WINDOW} tokens, {CONTEXT} for the last {1 - LONG_WINDOW_FROM:.0%} of the steps",
        "Seconds": f"{seconds:.0f} ({cpu_seconds:.0f} of CPU time, {args.threads} threads)",
        "Seed": str(args.seed),
        **held_out_figures(model, tokenizer, held_out),
        "Versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, tokenizers {tokenizers.__version__}",
    }
    write_readme(args.output, facts, samples)
    print("\n".join([*(f"{name}: {value}" for name, value in facts.items()), *samples]))


if __name__ == "__main__":
    main()

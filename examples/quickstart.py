"""From a checkpoint to text. Runs as it stands: `demo` comes with the package."""

from QEfficient import QEFFAutoModelForCausalLM


def main() -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained("demo")
    model.compile(prefill_seq_len=32, ctx_len=128, num_cores=16)
    result = model.generate("In the beginning", generation_len=40)
    print(result.generated_texts)
    print(result)


if __name__ == "__main__":
    main()

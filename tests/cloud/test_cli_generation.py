"""From a model to text on the command line, and from a compiled folder alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import GEOMETRY, Cli, Home

from QEfficient.artifacts import ArtifactStore
from QEfficient.cloud._requests import Requests
from QEfficient.demo import demo_folder
from QEfficient.program import ExportedProgram

METRICS = (
    r"Average Prefill time a\.k\.a TTFT is= [\d.]+ sec\nDecode is= [\d.]+ tokens/sec\n"
    r"Total is= [\d.]+ tokens/sec\nTotal \(E2E\) inference time is= [\d.]+ sec\n$"
)


def outside(*words: object) -> str:
    """The output of a fresh interpreter."""
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True).stdout


def test_the_stages_are_told_at_the_end(home: Home) -> None:
    assert all(stage in home.log for stage in ("load libraries", "trace", "weights", "compile", "total"))


@pytest.mark.slow
def test_export_writes_where_it_is_told_to(cli: Cli, home: Home, tmp_path: Path) -> None:
    result = cli("export", home.model, "--export-dir", tmp_path / "there")
    path = Path(result.out.strip())
    assert result.code == 0 and path.is_file() and path.parent.name.startswith("there-")


def test_a_second_command_loads_nothing(cli: Cli, home: Home) -> None:
    exported = cli("export", "--model-name", home.model, "--json").json
    assert (Path(exported["folder"]), exported["seconds"]) == (home.exported, {})
    again = cli("compile", home.model, *GEOMETRY)
    assert (Path(again.out.strip()), again.err) == (home.compiled, "nothing to do: the program is there\n")


def test_infer_streams_one_prompt_and_prints_the_figures(cli: Cli, home: Home) -> None:
    result = cli("infer", home.model, "--prompt", "Hello", "--generation-len", 6, *GEOMETRY)
    assert result.code == 0 and result.out.startswith("Hello") and re.search(METRICS, result.out)


def test_infer_takes_several_prompts(cli: Cli, home: Home, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One\n\nTwo two\n", encoding="utf-8")
    words = ("infer", home.model, "--generation-len", 4, *GEOMETRY)
    result = cli(*words, "--prompts_txt_file_path", tmp_path / "prompts.txt", "--prompt", "not this")
    lines = [line.split("\t") for line in result.out.splitlines()[:3]]
    assert [line[0] for line in lines] == ["prompt", "One", "Two two"] and lines[1][2:] == ["4", "length"]
    assert re.search(METRICS, result.out)
    assert [o["prompt"] for o in cli(*words, "--prompt", "One|Two two", "--json").json["outputs"]] == ["One", "Two two"]


def test_infer_and_execute_agree(cli: Cli, home: Home) -> None:
    asked = ("--prompt", "Hello", "--generation-len", 6, "--json")
    inferred = cli("infer", home.model, *asked, *GEOMETRY).json
    executed = cli("execute", "--qpc-path", home.compiled, *asked).json
    assert inferred["outputs"] == executed["outputs"]
    assert len(executed["outputs"][0]["generated_ids"]) == 6 and executed["outputs"][0]["prompt_tokens"] == 5
    assert executed["metrics"]["total_seconds"] > 0
    assert Path(executed["qpc_path"]) == home.compiled


def test_sampling_repeats_with_its_seed(cli: Cli, home: Home) -> None:
    def ids(seed: int) -> Any:
        flags = ("--temperature", 3, "--top-k", 50, "--top-p", 0.99, "--min-p", 0.0001, "--seed", seed)
        words = ("--prompt", "Hello", "--generation-len", 8, "--json", *flags)
        return cli("execute", "--qpc-path", home.compiled, *words).json["outputs"][0]["generated_ids"]

    assert ids(1) == ids(1) != ids(2)


def test_every_sampling_flag_reaches_the_tokens(cli: Cli, home: Home) -> None:
    def ids(*flags: object) -> Any:
        words = ("--prompt", "Hello", "--generation-len", 8, "--json", *flags)
        outputs = cli("execute", "--qpc-path", home.compiled, *words).json["outputs"]
        return [output["generated_ids"] for output in outputs]

    (plain,) = ids()
    assert ids("--do-sample", "false") == ids("--temperature", 0, "--top-k", 1) == [plain]
    hot = ("--temperature", 5, "--seed", 3)
    assert ids(*hot) != [plain] == ids(*hot, "--top-k", 1) == ids(*hot, "--top-p", 0) == ids(*hot, "--min-p", 1)
    assert ids(*hot, "--typical-p", 0.01) not in ([plain], ids(*hot))
    assert ids("--do-sample", "--seed", 3) == ids("--temperature", 1, "--seed", 3)
    several = ids(*hot, "--n", 3)
    assert several[0] == ids(*hot)[0] and len({tuple(each) for each in several}) == 3
    biased = ("--logit-bias", "65=2000", "--logit-bias", "66=1500")
    assert ids(*biased) == [[65] * 8]
    assert ids(*biased, "--presence-penalty", 1000)[0][:4] == [65, 66, 65, 65]
    assert ids(*biased, "--frequency-penalty", 200)[0][:5] == [65, 65, 65, 66, 65]
    assert ids(*biased, "--repetition-penalty", 50)[0][:2] == [65, 66]
    assert ids("--stop-token-ids", f"{plain[3]},9") == [plain[: plain.index(plain[3]) + 1]]
    held = ids("--stop-token-ids", f"{plain[3]},9", "--min-new-tokens", 8)
    assert len(held[0]) == 8 and plain[3] not in held[0][:7]
    assert ids("--max-length", 7) == [plain]  # --generation-len goes before it
    found = cli("execute", "--qpc-path", home.compiled, "--prompt", "Hello", "--max-length", 7, "--json").json[
        "outputs"
    ]
    assert [output["generated_ids"] for output in found] == [plain[:2]]


def test_logprobs_are_in_the_document(cli: Cli, home: Home) -> None:
    words = ("execute", "--qpc-path", home.compiled, "--prompt", "Hello", "--generation-len", 3, "--logprobs", 2)
    (output,) = cli(*words, "--json").json["outputs"]
    assert [record["token"] for record in output["logprobs"]] == output["generated_ids"]
    for record in output["logprobs"]:
        assert record["rank"] == 1 and len(record["top"]) == 2
        assert record["top"][0] == [record["token"], record["logprob"]]
    assert "printed with --json only" in cli(*words).err


def test_several_answers_are_a_table(cli: Cli, home: Home) -> None:
    words = ("execute", "--qpc-path", home.compiled, "--prompt", "One|Two", "--generation-len", 2, "--n", 2)
    rows = [line.split("\t")[0] for line in cli(*words, "--temperature", 1).out.splitlines()[:5]]
    assert rows == ["prompt", "One", "One", "Two", "Two"]


def test_the_compiled_folder_alone_knows_how_to_choose(cli: Cli, home: Home, tmp_path: Path) -> None:
    """The model draws; its folder is gone when the program runs."""
    model = shutil.copytree(home.model, tmp_path / "model")
    config = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 6, "no_repeat_ngram_size": 2}
    (model / "generation_config.json").write_text(json.dumps(config))
    compiled = cli("compile", model, *GEOMETRY, "--compile-dir", tmp_path / "compiled").out.strip()
    shutil.rmtree(model)

    def execute(where: object, *flags: object) -> Any:
        return cli("execute", "--qpc-path", where, "--prompt", "Hello", "--json", *flags)

    drawn = execute(compiled, "--seed", 1)
    assert "asks for no_repeat_ngram_size=2, which is not done here" in drawn.err
    ids = drawn.json["outputs"][0]["generated_ids"]
    assert len(ids) == 6 and drawn.json["outputs"] != execute(compiled, "--seed", 2).json["outputs"]
    same = execute(home.compiled, "--seed", 1, "--temperature", 5, "--generation-len", 6)
    assert same.json["outputs"] == drawn.json["outputs"]
    greedy = execute(compiled, "--temperature", 0, "--generation-len", 4)
    assert greedy.json["outputs"] == execute(home.compiled, "--generation-len", 4).json["outputs"]


def test_execute_and_a_second_infer_need_no_torch(home: Home) -> None:
    asked = ["--prompt", "Hello", "--generation-len", "3", "--json"]
    for words in (["execute", "--qpc-path", str(home.compiled)], ["infer", str(home.model), *GEOMETRY]):
        code = f"""
import sys
from QEfficient.cloud.main import main
assert main({words + asked!r}) == 0
assert not {{"torch", "onnx", "onnxscript"}} & set(sys.modules)
"""
        assert len(json.loads(outside("-c", code))["outputs"][0]["generated_ids"]) == 3


def test_the_same_as_a_module_with_the_flags_of_qualcomms_library(home: Home) -> None:
    words = ["--qpc_path", home.compiled, "--model_name", home.model, "--prompt", "Hello", "--device_group", "[0]"]
    out = outside("-m", "QEfficient.cloud.execute", *words, "--full_batch_size", "1", "--generation_len", "3")
    assert re.search(METRICS, out)


@pytest.mark.parametrize("where", ["the folder around", "a name"])
def test_execute_finds_the_program(cli: Cli, home: Home, where: str) -> None:
    path = home.exported if where == "the folder around" else home.compiled.name[:8]
    assert cli("execute", "--qpc-path", path, "--prompt", "Hello", "--generation-len", 2).code == 0


def test_a_tokenizer_may_come_from_elsewhere(cli: Cli, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("execute", "--qpc-path", home.compiled, "--prompt", "Hello", "--generation-len", 3, "--json")
    own = cli(*asked).json
    monkeypatch.setattr(ExportedProgram, "has_tokenizer", False)
    refused = cli(*asked)
    assert refused.code == 1 and "holds no tokenizer" in refused.error
    assert cli(*asked, "--model-name", home.model).json["outputs"] == own["outputs"]


def test_compile_takes_an_exported_program(cli: Cli, home: Home, tmp_path: Path) -> None:
    onnx_path = next(home.exported.glob("*.onnx"))
    result = cli("compile", "--onnx_path", onnx_path, "--qpc_path", tmp_path / "qpcs", "--num-cores", 16, *GEOMETRY)
    made = Path(result.out.strip())
    assert result.code == 0 and made.parent == tmp_path / "qpcs" and made.name == home.compiled.name
    assert cli("compile", "--onnx-path", home.exported, *GEOMETRY, "--json").json["folder"] == str(home.compiled)


def test_a_request_is_known_while_nothing_changes(tmp_path: Path, made: Home) -> None:
    store, model = ArtifactStore(tmp_path / "home"), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def known(options: dict[str, Any]) -> Path | None:
        return Requests(store, str(model), options).find("compiled")

    Requests(store, str(model), {"a": 1}).keep("compiled", made.compiled)
    assert known({"a": 1}) == made.compiled
    assert known({"a": 2}) is None
    (model / "weights").write_text("new")
    assert known({"a": 1}) is None
    Requests(store, str(model), {"a": 1}).keep("compiled", tmp_path / "incomplete")
    assert known({"a": 1}) is None


def test_a_relative_folder_is_another_one_elsewhere(
    cli: Cli, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        made.append(cli("compile", home.model, *GEOMETRY, "--compile-dir", "out").out.strip())
    assert [Path(path).parent for path in made] == [tmp_path / "here" / "out", tmp_path / "there" / "out"]


def test_requests_about_the_hub_and_foreign_code_are_not_noted(tmp_path: Path, made: Home) -> None:
    store = ArtifactStore(tmp_path / "home")
    for model, options in (("some/model", {}), (str(made.model), {"trust_remote_code": True})):
        requests = Requests(store, model, options)
        requests.keep("compiled", made.compiled)
        assert requests.find("compiled") is None
    assert not store.root.exists()


@pytest.mark.slow
@pytest.mark.skipif(not (demo_folder() / "model.safetensors").is_file(), reason="the demo model is not there")
def test_the_demo_speaks(cli: Cli, scratch: Path) -> None:
    result = cli("infer")
    assert result.code == 0 and "using the built-in demo model" in result.err
    words = re.findall(r"[a-z]+", result.out.partition("\n\nAverage")[0])
    assert len(words) > 20 and {"the", "of"} & set(words)


@pytest.mark.slow
def test_verify_on_a_real_model(cli: Cli, home: Home) -> None:
    result = cli("verify", home.model, "--device", "reference", "--generation-len", 4, "--json")
    assert result.code == 0 and result.json["passed"], result.err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_on_a_terminal_tables_are_drawn(home: Home) -> None:
    """What a person sees; elsewhere it would be tab-separated."""
    leader, follower = os.openpty()
    code = "import sys; from QEfficient.cloud.main import main; sys.exit(main(['cache', 'list']))"
    with os.fdopen(leader, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", code], stdout=follower, stderr=follower, check=True)
        os.close(follower)
        shown = screen.read(4096).decode()
    assert "─" in shown and "\t" not in shown


ON_CPU = ("--device", "cpu", "--ctx-len", "64", "--num-threads", "1", "--weight-format", "f32")


def test_tokens_tried_ahead_are_the_same(cli: Cli, home: Home) -> None:
    """With a folder and a compiled program as draft model too."""
    words = (home.model, "--prompt", "one two one two one", "--generation-len", 24, "--json", *ON_CPU)
    plain = cli("infer", *words).json
    for flags in (("--prompt-lookup",), ("--prompt-lookup=3",), ("--draft-model", home.model)):
        found = cli("infer", *words, *flags).json
        assert found["outputs"] == plain["outputs"]
        assert found["metrics"]["drafted_tokens"] >= found["metrics"]["accepted_tokens"]
    words = ("--qpc-path", plain["qpc_path"], *words[1:6])
    assert cli("execute", *words, "--draft-model", plain["qpc_path"]).json["outputs"] == plain["outputs"]
    assert cli("execute", *words, "--prompt-lookup").json["outputs"] == plain["outputs"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--prompt-lookup",), "device 'reference': this program gives the logits of one token"),
        (("--prompt-lookup", "0"), "a positive whole number is expected, not '0'"),
        (("--prompt-lookup", "--draft-model", "x"), "not allowed with argument --prompt-lookup"),
        (("--draft-model", "/nowhere"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_tried_ahead(cli: Cli, home: Home, flags: tuple[str, ...], sentence: str) -> None:
    result = cli("execute", "--qpc-path", home.compiled, "--prompt", "Hello", "--generation-len", 4, *flags)
    assert result.code in (1, 2) and sentence in result.error

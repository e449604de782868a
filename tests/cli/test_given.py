"""From a command line and an environment to a config."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llamafast import cli
from llamafast.cli.answers import ANSWERS
from llamafast.cli.environment import strangers
from llamafast.cli.flags import ALWAYS, FOREIGN, OWN, variables
from llamafast.cli.given import HubName, config_of, hub_name
from llamafast.config import Config, FromPretrained, PoolConfig
from llamafast.errors import ConfigError
from llamafast.hub import InRepository


def given(*argv: str, environ: Mapping[str, str] | None = None) -> Config | PoolConfig:
    return config_of(cli.parse(["serve", *argv]), environ or {}, ask_hub=False)


def model_of(*argv: str, **environ: str) -> Any:
    config = given(*argv, environ={f"LLAMAFAST_{name}": value for name, value in environ.items()})
    assert isinstance(config, Config)
    return config.model


def fault_of(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        model_of(*argv, **environ)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps({"model": {"path": "file.gguf", "n_ctx": 1, "n_batch": 64, "alias": "of-the-file"}}))
    return str(path)


def test_flags_come_before_variables_and_these_before_the_file(file: str) -> None:
    assert (model_of(file).n_ctx, model_of(file).threads) == (1, None)
    assert model_of(file, CTX="2").n_ctx == 2
    assert model_of(file, MODEL__N_CTX="2").n_ctx == 2
    model = model_of(file, "--ctx", "3", "--threads", "1", CTX="2", THREADS="5")
    assert (model.n_ctx, model.threads, model.n_batch, model.alias) == (3, 1, 64, "of-the-file")
    assert model_of(file, "--ctx", "3", "--set", "model.n_ctx=4").n_ctx == 4
    assert model_of(file, "--set", "model.n_ctx=4", "--ctx", "3").n_ctx == 3
    assert model_of(file, CTX="").n_ctx == 1


@pytest.mark.parametrize("flag", ["-c", "-C", "--config-file"])
def test_a_config_file_by_flag(file: str, flag: str) -> None:
    assert model_of(flag, file).alias == "of-the-file"
    assert model_of(flag, file, "-m", "other.gguf").path.endswith("/other.gguf")


def test_minus_c_with_a_number_is_the_context(file: str) -> None:
    assert model_of("x.gguf", "-c", "4096").n_ctx == 4096
    assert model_of(file, "-c", "4096").n_ctx == 4096


def test_what_a_model_may_be_called(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("weights", "~/weights", str(tmp_path / "weights")):
        assert model_of(text).path == str(tmp_path / "weights")
    assert model_of("none.gguf").path == str(tmp_path / "none.gguf")
    assert model_of(MODEL="none.gguf").path == str(tmp_path / "none.gguf")
    assert model_of("cfg.json").alias == "of-the-file"
    assert model_of(CONFIG_FILE="cfg.json").alias == "of-the-file"
    assert model_of("weights", MODEL="cfg.json").alias is None
    assert model_of("weights", MODEL="none.json").path == str(tmp_path / "weights")
    assert model_of("cfg.json", MODEL="none.gguf").path == str(tmp_path / "none.gguf")
    assert model_of("--set", "model.path=x.gguf").path == "x.gguf"
    assert fault_of().startswith("which model? `llamafast serve model.gguf`")
    assert fault_of("none.json") == f"{tmp_path}/none.json: no such file"
    assert fault_of("none") == f"{tmp_path}/none: no such file"
    assert fault_of(str(tmp_path)) == f"{tmp_path}: is a folder; there are cfg.json"
    assert fault_of("x.gguf", "-m", "y.gguf") == "two models: x.gguf and -m y.gguf"
    assert fault_of("cfg.json", "-c", "cfg.json") == "two config files: cfg.json and -c cfg.json"
    assert "two models" in fault_of("x.gguf", "--set", "model.path=y.gguf")
    assert fault_of("x.gguf", "-hff", "y.gguf").startswith("-hff y.gguf: is a file of a repository")
    assert fault_of("a" * 300).endswith("a: File name too long")


def test_a_file_is_known_by_its_beginning(tmp_path: Path) -> None:
    def fault(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return fault_of(str(tmp_path / name)).removeprefix(f"{tmp_path / name}: ")

    neither = "is neither a GGUF nor a JSON config file"
    assert fault("m.safetensors", b"\x88\x00\x00\x00\x00\x00\x00\x00{}") == neither
    assert fault("cfg.yaml", b"model:\n  path: m.gguf\n") == neither
    assert fault("cut.gguf", b"") == "is empty"
    assert fault("cfg.json", b"// mine\n{}") == "line 1 column 1: Expecting value"
    (tmp_path / "config").write_bytes(b'\xef\xbb\xbf \n{"model": {"path": "m.gguf"}}')
    assert model_of(str(tmp_path / "config")).path == "m.gguf"


def test_a_config_comes_through_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"model": {"path": "m.gguf"}}')
    os.close(writer)
    assert model_of(f"/dev/fd/{reader}").path == "m.gguf"
    os.close(reader)


def test_what_is_no_section_is_a_fault_beside_a_named_model(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_text('{"model": "m.gguf"}')
    assert fault_of(str(file), "-m", "x.gguf") == f"{file}: model: expected object, got string"
    assert fault_of("x.gguf", "--set", "model=m") == "--set model=m: model: expected object, got string"
    file.write_text('{"model": {"loras": 5}}')
    assert fault_of(str(file), "--lora", "a.gguf").startswith("--lora a.gguf: model.loras is no list")


def test_a_fault_in_a_list_is_its_flags(file: str) -> None:
    assert fault_of(file, "-ts", "1,x") == "-ts 1,x: model.tensor_split[1]: expected number, got string"


def test_numbers_are_finite_as_in_files() -> None:
    for text in ("Infinity", "-Infinity", "NaN", "1e999"):
        fault = fault_of("x.gguf", "--set", f"server.request_seconds={text}")
        assert fault.endswith("server.request_seconds: expected number | null, got string")


def test_what_is_no_unicode_is_told_of_flags_too() -> None:
    assert fault_of("m\udcff.gguf").endswith("/m\\udcff: is not valid Unicode")
    assert "is not valid Unicode" in fault_of("m.gguf", "--set", 'model.alias="\\ud800"')


def test_an_empty_key_lets_nobody_in(capsys: Any) -> None:
    """Of `--api-key "$KEY"` where the variable is not set."""
    with pytest.raises(SystemExit):
        cli.parse(["serve", "x.gguf", "--api-key", ""])
    assert "--api-key: is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/repo", HubName("org/repo", None)),
        ("org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("hf.co/org/repo:Q8_0", HubName("org/repo", "Q8_0")),
        ("https://huggingface.co/org/repo-1.5_GGUF", HubName("org/repo-1.5_GGUF", None)),
        ("org/repo:q4/m.gguf", HubName("org/repo", "q4/m.gguf")),
        ("repo", None),
        ("a/b/c", None),
        ("../repo", None),
        ("/org/repo", None),
    ],
)
def test_names_on_the_hub(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name


def test_a_name_on_the_hub_becomes_a_source(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    asked = []

    def find(repo: str, quant: str | None, *, ask: bool) -> InRepository:
        asked.append((repo, quant, ask))
        return InRepository("q/m.gguf", "mmproj.gguf")

    monkeypatch.setattr("llamafast.hub.find_in_repository", find)
    monkeypatch.setattr("llamafast.model_files.projector_packages", list)
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({"model": {"path": "m", "n_batch": 64, "mtmd": {"mmproj_path": "own", "max_media": 3}}}))
    assert model_of("org/repo:q/m.gguf").from_pretrained.filename == "q/m.gguf"
    assert model_of("org/repo.gguf").path == str(Path("org/repo.gguf").absolute())
    assert asked.pop() == ("org/repo", "q/m.gguf", False)
    for argv in (["org/repo:Q8_0"], ["-hf", "org/repo:Q8_0"], ["-hf", "org/repo", "-hff", "Q8_0"]):
        model = model_of(*argv)
        assert model.from_pretrained == FromPretrained(repo_id="org/repo", filename="q/m.gguf")
        assert model.mtmd.mmproj_from_pretrained == FromPretrained(repo_id="org/repo", filename="mmproj.gguf")
        assert asked.pop() == ("org/repo", "Q8_0", False)
    assert model_of("org/repo", "--no-mmproj").mtmd is None
    assert model_of(str(file), "--no-mmproj").mtmd is None
    assert model_of("org/repo", "--no-mmproj", "--mmproj", "mine").mtmd.mmproj_path == "mine"
    assert model_of("org/repo", "--mmproj", "mine.gguf").mtmd.mmproj_path == "mine.gguf"
    # in place of the file's model, with all else that the file says
    model = model_of(str(file), "-hf", "org/repo")
    assert (model.path, model.n_batch, model.mtmd.mmproj_path, model.mtmd.max_media) == (None, 64, "own", 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("llamafast.model_files.projector_packages", lambda: ["pillow"])
    assert model_of("org/repo").mtmd is None
    assert "text only: the projector mmproj.gguf needs pillow: pip install" in capsys.readouterr().err


def test_faults_say_who_is_at_fault(file: str) -> None:
    assert fault_of(file, "--ctx", "many") == "--ctx many: model.n_ctx: expected integer | null, got string"
    assert fault_of(file, CTX="many") == "LLAMAFAST_CTX: model.n_ctx: expected integer | null, got string"
    assert fault_of(file, "--set", "a.b=1") == "--set a.b=1: a: unknown key"
    assert fault_of(file, MODEL__N_CXT="1") == "LLAMAFAST_MODEL__N_CXT: model.n_cxt: unknown key; did you mean n_ctx?"
    assert fault_of(file, "--set", "model.n_ctx.x=1").startswith("--set model.n_ctx.x=1: model.n_ctx.x is below")
    Path(file).write_text('{"model": {"path": "m", "n_cxt": 1}}')
    assert fault_of(file, "--threads", "0").split("\n") == [
        f"{file}: model.n_cxt: unknown key; did you mean n_ctx?",
        "--threads 0: model.threads: expected integer >= 1",
    ]


def test_values_are_what_the_key_takes(file: str) -> None:
    assert model_of(file, "--alias", "123").alias == "123"
    assert model_of(file, MODEL__ALIAS="true").alias == "true"
    assert model_of(file, "--set", 'model.kv_overrides={"a": 1}').kv_overrides == {"a": 1}
    config = given(file, "--set", 'server.cors_origins=["*"]', "--set", "server.drain_seconds=1")
    assert (config.server.cors_origins, config.server.drain_seconds) == (("*",), 1.0)


def test_several_models(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({"models": [{"path": "a.gguf"}, {"path": "b.gguf"}]}))
    config = given(str(file), "--port", "1", "--set", "models[1].n_ctx=5", environ={"LLAMAFAST_MODELS__0__N_CTX": "4"})
    assert isinstance(config, PoolConfig)
    assert ([model.n_ctx for model in config.models], config.server.port) == ([4, 5], 1)
    assert fault_of(str(file), "--ctx", "5").endswith(
        "several models: write --set models[0].n_ctx=..., or set LLAMAFAST_MODELS__0__N_CTX"
    )
    assert fault_of(str(file), "-m", "x.gguf").endswith("has several models of its own")
    assert "there is no 2 in a list of 2" in fault_of(str(file), "--set", "models[2].n_ctx=5")


HABITS: list[tuple[str, dict[str, Any]]] = [
    ("-m x.gguf -c 4096 -np 8 -ctk q8_0 -ctv q8_0 -fa on -ngl 99", {
        "n_ctx": 4096, "n_seq_max": 8, "type_k": "q8_0", "type_v": "q8_0", "flash_attn": True, "n_gpu_layers": 99,
    }),
    ("-m x.gguf --ctx-size 4096 --parallel -1 -fa -ngl all -t -1 -b 512 -ub 64", {
        "n_ctx": 4096, "n_seq_max": None, "flash_attn": True, "n_gpu_layers": -1, "threads": None, "n_batch": 512,
        "n_ubatch": 64,
    }),
    ("-m x.gguf --served-model-name a,b --max-model-len 100 --kv-cache-dtype q4_0", {
        "alias": "a", "aliases": ("b",), "max_seq_len": 100, "type_k": "q4_0", "type_v": "q4_0",
    }),
    ("-m x.gguf --slots --no-webui --port 1", {"n_seq_max": None}),
    ("-m x.gguf --no-mmap --mlock -nkvo --jinja -cb --metrics --pooling rank -sm row -ts 3,1 --rope-scaling yarn", {
        "use_mmap": False, "use_mlock": True, "offload_kqv": False, "pooling_type": 4, "split_mode": 2,
        "tensor_split": (3.0, 1.0), "rope_scaling_type": 2,
    }),
    ("-m x.gguf --n-cpu-moe 12 --device CUDA0,RPC0 --numa distribute --rpc a:1,b:2 --cache-type-k q8_0", {
        "n_cpu_moe": 12, "devices": ("CUDA0", "RPC0"), "numa": "distribute", "rpc_servers": ("a:1", "b:2"),
        "type_k": "q8_0",
    }),
    ("-m x.gguf --cpu-moe -dev none -ot blk.(?=1)[0-9]{1,2}.ffn=CPU,attn=CUDA0 -ot output=CPU", {
        "n_cpu_moe": "all", "devices": "none",
        "override_tensors": ("blk.(?=1)[0-9]{1,2}.ffn=CPU", "attn=CUDA0", "output=CPU"),
    }),
    ("-m x.gguf -kvo --op-offload --warmup --spm-infill --sleep-idle-seconds 60", {
        "offload_kqv": True, "op_offload": True, "spm_infill": True, "ttl_seconds": 60.0,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("origins", "told"), [("http://a,http://b", ("http://a", "http://b")), ('["*"]', ("*",))])
def test_origins_of_other_servers(origins: str, told: tuple[str, ...]) -> None:
    for flag in ("--cors-origins", "--allowed-origins"):
        assert given("x.gguf", flag, origins).server.cors_origins == told


@pytest.mark.parametrize(("line", "fields"), HABITS)
def test_flags_of_other_servers(line: str, fields: dict[str, Any]) -> None:
    model = model_of(*line.split())
    assert {name: getattr(model, name) for name in fields} == fields


def test_adapters_are_added(file: str) -> None:
    loras = model_of(file, "--lora", "a.gguf", "--lora-scaled", "b.gguf:0.5", "--lora-modules", "c=c.gguf").loras
    assert [(one.path, one.scale, one.name) for one in loras] == [
        ("a.gguf", 1.0, None), ("b.gguf", 0.5, None), ("c.gguf", 1.0, "c"),
    ]  # fmt: skip


def test_overrides_are_added_to_a_list_alone(tmp_path: Path) -> None:
    file = tmp_path / "cfg.json"
    for said, told in (([], ("b=CPU",)), (["a=CPU"], ("a=CPU", "b=CPU"))):
        file.write_text(json.dumps({"model": {"path": "x", "override_tensors": said}}))
        assert model_of(str(file), "-ot", "b=CPU").override_tensors == told
    file.write_text(json.dumps({"model": {"path": "x", "override_tensors": {"a": "CPU"}}}))
    assert fault_of(str(file), "-ot", "b=CPU").startswith("-ot b=CPU: model.override_tensors is no list")


def test_a_template_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert model_of("x.gguf", "--chat-template", "chatml").chat_template == "chatml"
    assert model_of("x.gguf", "--chat-template-file", str(tmp_path / "t.jinja")).chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("-n 5 x.gguf", "llamafast serve: -n: requests say max_tokens; --set model.max_output_tokens=N"),
        (
            "x.gguf --tensor-parallel-size 2",
            "--tensor-parallel-size: llama.cpp divides a model among all GPUs",
        ),
        ("x.gguf --temp", "--temp: requests say how to sample"),
        ("x.gguf --prot 1", "llamafast: --prot: no such flag; did you mean --port?"),
        ("x.gguf --num-ctx=4", "--num-ctx: no such flag; did you mean model.n_ctx? Any key is set by --set KEY=VALUE"),
        ("x.gguf y.gguf", "y.gguf: one argument too many"),
        ("x.gguf -fa maybe", "-fa maybe: is one of on, off, auto"),
        ("x.gguf --chat-template llama3", "is a Jinja text here, or chatml; --chat-template-file names a file of one"),
        ("x.gguf --set n_ctx", "--set n_ctx: is KEY=VALUE"),
        ("x.gguf -ot exps", "-ot exps: is PATTERN=TYPE, such as 'ffn_.*_exps=CPU', and more of them behind commas"),
        ("x.gguf -ot a=CPU,b", "-ot a=CPU,b: is PATTERN=TYPE"),
        ("x.gguf --grammar x", "--grammar: requests say so: docs/structured-output.md"),
        ("x.gguf --dry-base 2", "--dry-base: requests say how to sample"),
        ("x.gguf --spec-draft-n-max 4", "--spec-draft-n-max: drafts are --set model.draft_model="),
        ("x.gguf --cache-type-k-draft q8_0", "--cache-type-k-draft: drafts are --set model.draft_model="),
        ("x.gguf --cache-typ-k q8_0", "--cache-typ-k: no such flag; did you mean --cache-type-k?"),
        ("x.gguf --threads-draft 4", "--threads-draft: drafts are --set model.draft_model="),
        ("x.gguf --cpu-mask 3", "--cpu-mask: threads are placed by what is measured, on CPUs that taskset leaves"),
        ("x.gguf --log-timestamps", "--log-timestamps: the log goes to stderr"),
        ("x.gguf --mcp-servers-config x", "--mcp-servers-config: clients run the tools that they offer"),
        ("x.gguf --fit off", "--fit: a context without --ctx is as long as fits"),
        ("x.gguf --otlp-traces-endpoint x", "--otlp-traces-endpoint: --set server.otlp_endpoint="),
        ("x.gguf --frobnicate", "--frobnicate: no such flag; any key of a config is set by --set KEY=VALUE"),
        ("x.gguf --ssl-cert-reqs 2", "--ssl-cert-reqs: no such flag; --set server.ssl_cert_reqs=VALUE is the same"),
        ("x.gguf --allowed-media-domains a", "--set model.mtmd.allowed_media_domains=VALUE"),
        ("x.gguf --file x", "--file: requests say what is asked"),
        ("x.gguf --temperature 1", "--temperature: is for requests to say"),
        # not its opposite
        ("x.gguf --no-slots", "--no-slots: --slots is always so here"),
        ("x.gguf --no-jinja", "--no-jinja: --jinja is always so here"),
        ("x.gguf -nocb", "-nocb: batches are always continuous"),
        ("x.gguf --no-cache-prompt", "--no-cache-prompt: a request with `cache_prompt` false takes nothing"),
        # nor what is only spelled like it
        ("x.gguf --rope-scale 2", "--rope-scale: --rope-freq-scale takes one divided by it"),
        ("x.gguf --no-mmproj-offload", "--no-mmproj-offload: the projector is computed where model.devices says"),
        ("x.gguf --image-min-tokens 8", "--image-min-tokens: the least of a picture is its projector's"),
        ("x.gguf --tags a", "--tags: --alias a,b gives a model further names"),
        ("x.gguf --max-cpu-loras 2", "--max-cpu-loras: --lora FILE or name=FILE is enough"),
        # nor a flag without a value that it begins like
        ("x.gguf -hfd org/repo", "-hfd: drafts are --set model.draft_model="),
        ("x.gguf -hfv=org/repo", "-hfv: no such flag"),
        ("x.gguf -vv", "-vv: no such flag"),
        ("x.gguf --repack", "--repack: llama.cpp lays weights out by itself"),
        ("x.gguf --perf", "--perf: a request with `timings_per_token` is told its times"),
        ("x.gguf --offline", "--offline: set HF_HUB_OFFLINE=1"),
        ("x.gguf --media-path x", "--media-path: --set model.mtmd.allowed_local_media_path=FOLDER"),
        ("x.gguf --control-vector x", "--control-vector: there are none here"),
        ("x.gguf --config x.yaml", "--config: -C FILE is a config file of ours, docs/config.md"),
        ("x.gguf --api-server-count 2", "--api-server-count: one event loop serves all connections"),
        ("x.gguf --mm-processor-kwargs {}", "--mm-processor-kwargs: limits of media are keys of model.mtmd"),
        ("x.gguf --kv-cache-memory-bytes 9", "--kv-cache-memory-bytes: --ctx says how large the cache is"),
        ("x.gguf --long-prefill-token-threshold 9", "how much of a step a prompt may take is measured"),
        ("x.gguf --distributed-executor-backend mp", "a server for each, and a router in front"),
        ("x.gguf --allowed-methods x", "--allowed-methods: put a proxy in front"),
        ("x.gguf --enable-force-include-usage", "requests ask for it: docs/fields.md"),
        ("x.gguf --list-devices", "--list-devices: `llamafast check MODEL` tells which are used"),
    ],
)
def test_what_is_no_flag_of_ours_is_answered(argv: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse(["serve", *argv.split()])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert text in told
    assert len(told.splitlines()) == 1


def test_no_flag_is_there_twice() -> None:
    names = [name for flag in (*OWN, *FOREIGN) for name in flag.names] + [*ALWAYS, *ANSWERS]
    assert len(names) == len(set(names))


def test_variables_that_do_nothing_are_told() -> None:
    lines = list(strangers({
        "LLAMAFAST_PROT": "1", "LLAMAFAST_PORT": "tcp://10.0.0.1:80", "LLAMAFAST_SERVICE_HOST": "10.0.0.1",
        "LLAMAFAST_PORT_80_TCP": "tcp://10.0.0.1:80", "LLAMAFAST_API_KEY": "k", "LLAMAFAST_CTX": "1", "OTHER": "1",
        "LLAMAFAST_MODEL__N_CTX": "1", "LLAMAFAST_QQQQ": "1",
    }, variables()))  # fmt: skip
    assert lines == [
        "LLAMAFAST_PORT: tcp://10.0.0.1:80 is Kubernetes' address of a service, and no setting: it is passed over",
        "LLAMAFAST_PROT: no such setting; did you mean LLAMAFAST_PORT?",
        "LLAMAFAST_QQQQ: no such setting",
    ]
    assert given("x.gguf", environ={"LLAMAFAST_PORT": "tcp://10.0.0.1:80"}).server.port == 8000
    assert given("x.gguf", environ={"LLAMAFAST_PORT": "81"}).server.port == 81


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["help"], "help: is no command here; `llamafast --help` tells the commands"),
        (["pull", "org/repo"], "`llamafast serve org/repo[:quant]` fetches what is not here yet"),
        (["ps"], "GET /v1/models"),
        (["stop", "m"], "Ctrl-C, or SIGTERM"),
    ],
)
def test_commands_of_others_are_answered(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err

"""Who may import whom. An architecture that is not tested is a wish."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llamafast"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))

# what each room may import of ours; a prefix names everything below it
CLI = ["llamafast.__version__", "llamafast.config", "llamafast.config_file", "llamafast.console", "llamafast.errors"]
FREE = ["llamafast.errors", "llamafast.config", "llamafast.metrics"]
DOOR = [
    f"llamafast.engine.{name}"
    for name in (
        "activity",
        "adapter_info",
        "embedding_info",
        "media",
        "model_facts",
        "reasoning",
        "slot_info",
        "types",
    )
]
ALLOWED = {
    "_core": ["llamafast.errors"],
    "engine": ["llamafast._core", "llamafast.engine", *FREE],
    "chat": ["llamafast.chat", *DOOR, *FREE],
    "media": ["llamafast.media", "llamafast._core", "llamafast.engine.media", *FREE],
    "api": ["llamafast.__version__", "llamafast.api", "llamafast.chat", "llamafast.page", *DOOR, *FREE],
    "page": [],
    "errors": [],
    "config": ["llamafast.config"],
    "metrics": ["llamafast.__version__", "llamafast.series"],
    "series": [],
    "console": [],
    "systemd": [],
    "events": ["llamafast.events", "llamafast.engine.kv_log", *FREE],
    "traces": ["llamafast.__version__", "llamafast.traces", "llamafast.api.spans", *FREE],
    "config_file": ["llamafast.config", "llamafast.errors"],
    "file_names": ["llamafast.errors"],
    "hub": ["llamafast.config", "llamafast.errors", "llamafast.file_names"],
    "model_files": ["llamafast.config", "llamafast.errors", "llamafast.file_names", "llamafast.hub"],
    "tls": ["llamafast.config", "llamafast.errors"],
    "server_url": ["llamafast.errors"],
    "loop_sockets": [],
    "cpus": [],
    "batch": [
        "llamafast.batch",
        "llamafast.config",
        "llamafast.errors",
        "llamafast.loop_sockets",
        "llamafast.server_url",
    ],
    "bench": ["llamafast.bench", "llamafast.errors", "llamafast.server_url"],
    "granian_limits": ["llamafast.config"],
    "listener": ["llamafast.tls", "llamafast.config", "llamafast.errors"],
    "front": [
        "llamafast.api.client_wait",
        "llamafast.api.connections",
        "llamafast.api.http",
        "llamafast.api.keys",
        "llamafast.api.loading",
        "llamafast.console",
        "llamafast.granian_limits",
        "llamafast.listener",
        "llamafast.systemd",
        *FREE,
    ],
    "pool": [
        "llamafast.pool",
        "llamafast.api",
        "llamafast.config_file",
        "llamafast.console",
        "llamafast.cpus",
        "llamafast.engine.files",
        "llamafast.engine.fit",
        "llamafast.engine.load",
        "llamafast.engine.memory",
        "llamafast.engine.namespaces",
        "llamafast.engine.need",
        "llamafast.engine.threads",
        "llamafast.engine.types",
        "llamafast.front",
        "llamafast.listener",
        "llamafast.loop_sockets",
        "llamafast.model_files",
        "llamafast.server",
        "llamafast.traces.opened",
        "llamafast.traces.exporter",
        *FREE,
    ],
    "server": [
        "llamafast.api.app",
        "llamafast.api.client_wait",
        "llamafast.api.keys",
        "llamafast.api.origins",
        "llamafast.cpus",
        "llamafast.engine",
        "llamafast.events.publisher",
        "llamafast.front",
        "llamafast.listener",
        "llamafast.media.opened",
        "llamafast.model_files",
        "llamafast.traces.opened",
        "llamafast.traces.exporter",
        *FREE,
    ],
    "cli": [
        "llamafast.cli",
        "llamafast.pool.parent",
        "llamafast.server",
        "llamafast.engine.load",
        "llamafast.engine.look",
        "llamafast.engine.numa",
        "llamafast.engine.placement",
        "llamafast.engine.threads",
        "llamafast.hub",
        "llamafast.model_files",
        "llamafast.chat.format",
        "llamafast.chat.grammar.constraints",
        "llamafast.batch.command",
        "llamafast.batch.served",
        "llamafast.bench",
        "llamafast.server_url",
        *CLI,
    ],
    "__main__": ["llamafast.cli"],
    "__init__": [],
}
OWNERS = {
    "granian": {"front", "tls", "granian_limits"},
    "uvloop": {"front", "bench/client"},
    "tqdm": {"server", "batch/run"},
    "huggingface_hub": {"hub"},
    "jinja2": {"chat/prompt/template"},
    "llguidance": {"chat/grammar/asked", "chat/grammar/compiler", "chat/grammar/requested", "chat/grammar/trial"},
    "regex": {f"chat/reply/declared/{name}" for name in ("contents", "regions", "response_template")},
    "prometheus_client": {"metrics", "pool/exposition"},
    "numpy": {"chat/vectors", "bench/figures", "media/silence"},
    "PIL": {"media/picture"},
    "python_multipart": {"api/form"},
    "httpcore2": {
        "cli/conversation",
        "media/fetch",
        "batch/client",
        "batch/served",
        "pool/children",
        "pool/passing",
        "loop_sockets",
    },
    "websockets": {"pool/sockets"},
    "xxhash": {"engine/prefix_key", "media/child", "media/row_files", "engine/disk_entry", "events/blocks"},
    "zmq": {"events/publisher"},
    "opentelemetry": {"traces/exporter"},
    "llama_cpp": set(),
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The modules a Python source imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            from_ours = node.module == "llamafast"
            names |= {f"llamafast.{alias.name}" for alias in node.names} if from_ours else {node.module}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    allowed = ALLOWED[room(path)]
    for name in imports(path):
        if name.split(".")[0] == "llamafast":
            assert any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed), name


def test_imports_make_no_circle():
    modules = {".".join(["llamafast", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in SOURCES}

    def below(module: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(modules[module].read_text())):
            if isinstance(node, ast.ImportFrom):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found & modules.keys()

    graph = {module: below(module) for module in modules}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_dependency_has_one_owner(path):
    module = str(path.relative_to(PACKAGE).with_suffix(""))
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or module in owners, name


def test_the_parent_of_several_models_loads_no_llama():
    """Its memory is to stay that of a thin process, whatever models there are."""
    code = "import sys, llamafast.pool.parent; print([one for one in sys.modules if 'llamafast._core' in one])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_core_cimports_only_itself_and_c():
    for path in (PACKAGE / "_core").glob("*.p*"):
        for name in re.findall(r"^from (\S+) cimport|^cimport (\S+)", path.read_text(), re.MULTILINE):
            assert re.match(r"\.|libc\.|cpython\.|posix\.|cython$", name[0] or name[1]), (path, name)


def test_chat_knows_no_event_loop():
    for path in (PACKAGE / "chat").rglob("*.py"):
        assert not imports(path) & {"asyncio", "threading"}, path


def test_the_first_line_of_a_file_says_what_it_owns():
    """And no two files own the same; an ``__init__.pxd`` is a mark only."""
    first: dict[str, Path] = {}
    for path in [*SOURCES, *(PACKAGE / "_core").rglob("*.pxd"), *(PACKAGE / "_core").rglob("*.pyx")]:
        if path.name == "__init__.pxd":
            continue
        line = path.read_text().partition("\n")[0].strip('"# ')
        assert path.read_text().startswith(('"""', "# ")), path
        assert len(line.split()) > 2 or path.name == "__main__.py", path
        assert first.setdefault(line, path) == path, line


def test_no_module_is_longer_than_can_be_read_at_once():
    assert {path: n for path in SOURCES if (n := path.read_text().count("\n")) > 350} == {}


def test_names_say_something():
    vague = re.compile(r"manager|handler|util|helper|common|base|processor", re.IGNORECASE)
    for path in SOURCES:
        assert not vague.search(path.stem), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert not vague.search(node.name), (path, node.name)


def test_no_test_sets_everybodys_clock():
    """Threads of other tests read it too; a test gives the modules that it asks a ``time`` of their own."""
    whole = re.compile(r"""setattr\((?:\s*time,|\s*["'](?:[\w.]+\.)?time\.)""")
    assert [path for path in Path(__file__).parent.rglob("*.py") if whole.search(path.read_text())] == []

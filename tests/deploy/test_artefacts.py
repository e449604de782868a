"""deploy/: what is rendered says what it should, and its configs and command lines are ones that work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from configparser import ConfigParser, RawConfigParser
from functools import partial
from pathlib import Path
from typing import Any

import crossplane
import pytest
import yaml
from engine.test_cgroup import System, files
from support.configs import config_in
from support.dockerfile import stages
from support.helm_subset import Chart

from llamafast.engine import placement, threads
from llamafast.engine.cgroup import cpu_quota

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ARGUMENTS_OF_THE_ROUTER = {"--policy=kv_aware", "--kv-penalty-host=1.0", "--kv-penalty-disk=0.9"}


def rendered(**values: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in Chart(DEPLOY / "helm", "llm", values).objects()}


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (one,) = workload["spec"]["template"]["spec"]["containers"]
    return one


# --- compose ----------------------------------------------------------------------------------------------------------


def test_compose_has_two_workers_behind_a_router():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert services.keys() == {"worker-0", "worker-1", "router"}
    config = config_in(DEPLOY / "worker.json")
    server = config.server
    for name in ("worker-0", "worker-1"):
        worker = services[name]
        assert "ports" not in worker
        assert worker["networks"] == ["workers"]
        assert int(worker["stop_grace_period"][:-1]) > server.drain_delay_seconds + server.drain_seconds + 5
        assert f"{name}:/var/lib/llamafast" in worker["volumes"]
        for source in (volume.split(":")[0] for volume in worker["volumes"] if volume.startswith(".")):
            assert source == "../models" or (DEPLOY / source).exists()
    assert compose["networks"]["workers"]["internal"]
    router = services["router"]
    assert router["command"].count("--worker-urls") == 1
    assert set(router["command"]) >= ARGUMENTS_OF_THE_ROUTER
    assert f"--kv-event-model={config.model.alias}" in router["command"]
    assert router["ports"] == ["127.0.0.1:8000:8000"]
    # a drain is seen before it is over
    interval = next(int(one.partition("=")[2]) for one in router["command"] if "check-interval" in one)
    assert server.drain_delay_seconds > 2 * interval
    for service in services.values():
        assert service["build"]["target"] in stages(DEPLOY / "Dockerfile")
    told = (compose["secrets"]["worker-key"]["file"], compose["services"]["worker-0"]["secrets"][0]["source"])
    assert (*told, server.api_key_file) == ("./worker-key", "worker-key", "/run/secrets/worker-key")


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def test_the_image_is_slim_and_nobodys_root():
    images = stages(DEPLOY / "Dockerfile")
    for name in ("server", "router"):
        image = images[name]
        assert re.fullmatch(r"python:3\.\d+-slim", image.base)
        (user,) = image.of("USER")
        assert int(user) > 0
        assert "build-essential" not in " ".join(image.of("RUN"))
        assert json.loads(image.of("ENTRYPOINT")[0])
        assert image.of("HEALTHCHECK")[0].startswith("--")
    assert json.loads(images["server"].of("CMD")[0]) == ["/etc/llamafast/cfg.json"]
    extras = re.search(r"/src\[(.*?)\]", " ".join(images["build"].of("RUN")))
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].split(",")) == project["optional-dependencies"].keys()


def test_the_image_and_the_documents_have_the_versions_that_tests_run() -> None:
    build, router = (" ".join(stages(DEPLOY / "Dockerfile")[name].of("RUN")) for name in ("build", "router"))
    found = re.search(r"\$\((grep .*?)\)", build)
    assert found is not None
    pinned = subprocess.run(found[1].replace("/src", str(ROOT)), shell=True, capture_output=True, text=True, check=True)
    assert f'"{pinned.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text()
    run = dict(re.findall(r"(vllm-router|smg|ray)(?:\[serve\])?==([\d.]+)", (ROOT / "Makefile").read_text()))
    assert run.keys() == {"vllm-router", "smg", "ray"}
    assert f"vllm-router=={run['vllm-router']}" in router.split()
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name, version in run.items():
        assert f"(https://pypi.org/project/{name}/) {version} |" in page, name


def test_threads_follow_the_quota_of_the_container(tmp_path, monkeypatch):
    """Of a machine with many cores, as Kubernetes and compose limit CPUs: by a quota and not by affinity."""
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(threads, "CPU", tmp_path / "no topology")
    assert threads.physical_cores() >= 1
    system = System(tmp_path)
    top = system.mount("cgroup")
    system.member("0::/")
    monkeypatch.setattr(threads, "cpu_quota", partial(cpu_quota, system.proc))
    for quota, expected in (("max 100000", 64), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)):
        files(top, cpu__max=quota)
        assert threads.physical_cores() == expected
    files(top, cpu__max="400000 100000")
    (tmp_path / "cfg.json").write_text('{"model": {"path": "a.gguf", "n_gpu_layers": 0}}')
    model = config_in(tmp_path / "cfg.json").model
    assert placement.placement_of(model).threads <= 4


# --- Helm -------------------------------------------------------------------------------------------------------------


def test_the_charts_workers_have_probes_room_to_drain_and_a_disk(tmp_path):
    objects = rendered()
    worker = objects["StatefulSet", "llm-worker"]
    one = container(worker)
    probes = {kind: one[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ready", "readiness": "/ready", "liveness": "/live"}
    config = objects["ConfigMap", "llm"]["data"]["cfg.json"]
    (tmp_path / "cfg.json").write_text(config)
    server = config_in(tmp_path / "cfg.json").server
    grace = worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > server.drain_delay_seconds + server.drain_seconds + 5
    assert server.drain_delay_seconds > 2 * one["readinessProbe"]["periodSeconds"]
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert json.loads(config)["disk_cache"]["path"].startswith(mounts["prefixes"])
    assert server.api_key_file is not None
    assert server.api_key_file.startswith(mounts["key"])
    assert worker["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "prefixes"
    volumes = {volume["name"] for volume in worker["spec"]["template"]["spec"]["volumes"]} | {"prefixes"}
    assert volumes == mounts.keys()
    security = worker["spec"]["template"]["spec"]["securityContext"]
    assert security["runAsNonRoot"]
    # by "Always" each mount gives the group what the volume has, which is then not the server's alone to write
    assert security["fsGroupChangePolicy"] == "OnRootMismatch"
    assert server.kv_events is not None
    for endpoint, name in ((server.kv_events.endpoint, "events"), (server.kv_events.replay_endpoint, "replays")):
        assert endpoint == f"tcp://*:{next(p['containerPort'] for p in one['ports'] if p['name'] == name)}"


def test_the_charts_router_knows_each_worker():
    arguments = container(rendered(replicas=3)["Deployment", "llm-router"])["args"]
    assert set(arguments) >= ARGUMENTS_OF_THE_ROUTER | {"--kv-event-model=chat"}
    assert arguments[arguments.index("--worker-urls") + 1 :] == [
        f"http://llm-worker-{i}.llm-workers:8000" for i in range(3)
    ]
    assert sum(one.startswith("--kv-event-source=") for one in arguments) == 3
    objects = rendered(replicas=3)
    assert objects["StatefulSet", "llm-worker"]["spec"]["replicas"] == 3
    assert objects["StatefulSet", "llm-worker"]["spec"]["serviceName"] == "llm-workers"
    assert ("HorizontalPodAutoscaler", "llm-worker") not in objects
    labels = objects["StatefulSet", "llm-worker"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service", "llm-workers"]["spec"]["selector"] == labels


def test_workers_scale_by_the_queue_and_are_found_by_their_labels():
    objects = rendered(autoscaling={"enabled": True}, podMonitor={"enabled": True})
    scaler = objects["HorizontalPodAutoscaler", "llm-worker"]["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "llamacpp:requests_deferred"
    assert scaler["scaleTargetRef"]["name"] == "llm-worker"
    worker = objects["StatefulSet", "llm-worker"]["spec"]
    assert "replicas" not in worker  # or each upgrade would undo what was scaled
    router = objects["Deployment", "llm-router"]
    arguments = container(router)["args"]
    assert "--service-discovery" in arguments
    labels = worker["template"]["metadata"]["labels"]
    selector = dict(one.split("=") for one in arguments[arguments.index("--selector") + 1 :])
    assert selector.items() <= labels.items()
    assert (
        router["spec"]["template"]["spec"]["serviceAccountName"]
        == objects["ServiceAccount", "llm-router"]["metadata"]["name"]
    )
    monitor = objects["PodMonitor", "llm"]["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    assert monitor["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container({"spec": worker})["ports"]}


# --- systemd, nginx ---------------------------------------------------------------------------------------------------


def test_the_unit_is_one_and_leaves_time_to_drain(tmp_path):
    text = (DEPLOY / "llamafast.service").read_text()
    unit: ConfigParser | RawConfigParser = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["Type"] == "notify"
    (tmp_path / "cfg.json").write_text('{"model": {"path": "a.gguf"}}')
    server = config_in(tmp_path / "cfg.json").server
    assert int(service["TimeoutStopSec"]) >= server.drain_delay_seconds + server.drain_seconds + 10
    assert service["ExecStart"].split()[1:] == ["serve", "/etc/llamafast/cfg.json"]
    if analyze := shutil.which("systemd-analyze"):
        # the programs that it names are here, under another name
        file = tmp_path / "llamafast.service"
        file.write_text(re.sub(r"^(ExecStart=)\S+", rf"\1{shutil.which('true')}", text, flags=re.MULTILINE))
        done = subprocess.run([analyze, "verify", "--man=no", file], capture_output=True, text=True, check=False)
        own = [line for line in done.stderr.splitlines() if "llamafast.service" in line]
        assert own == [], done.stderr


def test_nginx_reads_its_part_and_lets_streams_through(tmp_path):
    whole = tmp_path / "nginx.conf"
    whole.write_text(f"events {{}}\nhttp {{ include {DEPLOY / 'nginx.conf'}; }}\n")
    parsed = crossplane.parse(str(whole), strict=True)
    # what stands in a map is no directive
    assert [error for error in parsed["errors"] if not re.search('directive "(default)?" in', error["error"])] == []
    found: dict[str, list[str]] = {}

    def walk(block: list[dict[str, Any]]) -> None:
        for one in block:
            found[one["directive"]] = one["args"]
            walk(one.get("block", []))

    walk(parsed["config"][1]["parsed"])
    assert found["proxy_buffering"] == found["proxy_request_buffering"] == ["off"]
    (tmp_path / "cfg.json").write_text('{"model": {"path": "a.gguf"}}')
    config = config_in(tmp_path / "cfg.json")
    assert int(found["keepalive_timeout"][0][:-1]) < config.server.keep_alive_seconds
    assert int(found["client_max_body_size"][0][:-1]) * 2**20 >= config.max_body_bytes
    assert int(found["proxy_read_timeout"][0][:-1]) >= 3600


# --- what others say of them ------------------------------------------------------------------------------------------


@pytest.mark.scale
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"replicas": 3, "model": {"path": "/models/b.gguf", "alias": "b"}},
        {"autoscaling": {"enabled": True}, "podMonitor": {"enabled": True}},
    ],
    ids=["as it is", "set", "scaled"],
)
def test_helm_renders_what_the_tests_above_read_and_kubernetes_takes_it(values: dict[str, Any]) -> None:
    """By Helm's own code, and by Kubernetes' own schemas, but for what is Prometheus's operator's."""
    import helm_python
    import kubernetes_validate

    with helm_python.Chart.load(DEPLOY / "helm") as chart:
        texts = chart.render(values, name="llm", namespace="models").values()
    made = [one for text in texts for one in yaml.safe_load_all(text) if one]
    assert {(one["kind"], one["metadata"]["name"]): one for one in made} == rendered(**values)
    for one in made:
        if one["kind"] != "PodMonitor":
            kubernetes_validate.validate(one, "1.31", strict=True)


@pytest.mark.scale
def test_helm_finds_no_fault_with_the_chart() -> None:
    import helm_python

    told = helm_python.lint(DEPLOY / "helm")
    assert told["errors"] == []
    assert [one["error"] for one in told["messages"]] == ["icon is recommended"]

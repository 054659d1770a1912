"""Deployment files, checked without building: the Dockerfile, locked requirements, compose file, Kubernetes."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import TABLE, Settings
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VARIABLES = {setting.variable for setting in TABLE}
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu-nvidia", "gpu-dri")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage name → its instructions, FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            list(found.values())[-1].append((word, rest))
    return found


def values(stage: str, word: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == word]


def locked() -> dict[str, str]:
    """Canonical name → version of every locked requirement."""
    text = (ROOT / "requirements.lock").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def documents(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# The locked requirements


def test_the_lock_has_a_fitting_version_of_every_dependency() -> None:
    have = locked()
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        version = have.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{text}: run make requirements"


def test_every_locked_file_has_a_hash_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    for block in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block


def test_what_the_code_imports_is_locked() -> None:
    distributions = packages_distributions()
    extras = [Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts]
    have = {*locked(), *(canonicalize_name(extra.name) for extra in extras)}  # the code works without extras
    for path in [*(ROOT / "service").glob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - {"service", "kernels"} - sys.stdlib_module_names:
                owners = {canonicalize_name(name) for name in distributions.get(top, [top])}
                assert owners & have, f"{path.name} imports {top}, which requirements.lock lacks"


# The Dockerfile


def test_only_the_base_argument_comes_from_a_hub() -> None:
    seen: set[str] = set()
    for name, ((_, source), *_) in stages().items():
        base = source.split(" AS ")[0]
        assert base in seen | {"scratch", "${BASE}"}
        seen.add(name)
    base = next(rest for word, rest in instructions() if (word, rest.split("=")[0]) == ("ARG", "BASE"))
    assert ":" in base and "latest" not in base


def test_the_image_runs_as_an_unprivileged_user_and_without_a_shell() -> None:
    assert values("base", "FROM") == ["scratch AS base"]
    assert not values("base", "RUN") + values("cpu", "RUN") + values("gpu", "RUN")
    [user] = values("base", "USER")
    assert all(int(number) > 1000 for number in user.split(":"))
    assert isinstance(json.loads(values("base", "ENTRYPOINT")[0]), list)
    assert json.loads(values("base", "CMD")[0]) == ["serve"]
    assert json.loads(values("base", "HEALTHCHECK")[0].split(" CMD ")[1]) == ["/usr/local/bin/healthcheck.py"]
    assert values("base", "EXPOSE") == ["8080"]


def test_the_image_is_of_this_version_and_its_variables_are_settings() -> None:
    assert f"VERSION={PROJECT['version']}" in values("base", "ARG")
    for stage in ("base", "cpu", "gpu"):
        variables = set(re.findall(r"\b(WISP_\w+)=", " ".join(values(stage, "ENV"))))
        assert variables <= VARIABLES
    assert "WISP_HOST=0.0.0.0" in values("base", "ENV")[0]


def test_the_default_target_is_the_small_one_and_only_the_large_one_has_vulkan() -> None:
    assert list(stages())[-1] == "cpu"
    assert any("--from=vulkan" in copied for copied in values("gpu", "COPY"))
    assert not any("--from=vulkan" in copied for copied in values("base", "COPY") + values("cpu", "COPY"))


def test_the_context_holds_every_copied_file() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for word, rest in instructions():
        if word == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_no_package_is_unpacked_twice() -> None:
    lists = [(ROOT / f"deploy/image/packages-{name}.txt").read_text() for name in ("cpu", "gpu")]
    names = [line for text in lists for line in text.splitlines() if not line.startswith("#")]
    assert sorted(names) == sorted(set(names))


# The compose file


def compose() -> Any:
    return documents(ROOT / "compose.yaml")


def test_up_serves_with_no_edits() -> None:
    default = re.search(r"^COMPOSE_PROFILES=(\w+)$", (ROOT / ".env").read_text(), re.MULTILINE)
    assert default
    [service] = [one for one in compose()["services"].values() if default[1] in one["profiles"]]
    assert service["build"]["target"] == "cpu"
    assert "devices" not in service
    # No key is needed, as only this machine can connect.
    assert service["ports"] == ["${WISP_PUBLISH:-127.0.0.1:8080}:8080"]
    assert service["environment"]["WISP_PUBLISHED"] == "${WISP_PUBLISH:-127.0.0.1:8080}"
    assert service["environment"]["WISP_ALLOW_PUBLIC_WITHOUT_KEY"] == "${WISP_ALLOW_PUBLIC_WITHOUT_KEY:-no}"


def test_every_service_can_have_its_keys_from_a_secret() -> None:
    keys = documents(ROOT / "compose.keys.yaml")
    assert set(keys["services"]) == set(compose()["services"])
    for service in keys["services"].values():
        [secret] = service["secrets"]
        assert secret in keys["secrets"]
        assert service["environment"]["WISP_API_KEYS_FILE"] == f"/run/secrets/{secret}"
        assert service["environment"]["WISP_ALLOW_PUBLIC_WITHOUT_KEY"] == "no"
        assert set(service["environment"]) <= VARIABLES


@pytest.mark.parametrize("name", ["cpu", "home-assistant", "nvidia", "dri"])
def test_every_service_is_locked_down_and_limited(name: str) -> None:
    service = compose()["services"][name]
    assert service["profiles"] == [name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # Compose refuses `pids_limit` next to limits of `deploy`.
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "pids"} and "pids_limit" not in service
    assert service["tmpfs"][0].startswith("/tmp:")
    assert service["image"] == f"wisp:{PROJECT['version']}-{service['build']['target']}"
    assert service["build"]["target"] in stages()
    assert {f"ARG {name}" for name in service["build"]["args"]} <= {
        f"{word} {rest.split('=')[0]}" for word, rest in instructions()
    }
    assert set(service["environment"]) <= VARIABLES


def test_home_assistant_reaches_its_port_from_this_machine_alone() -> None:
    service, plain = compose()["services"]["home-assistant"], compose()["services"]["cpu"]
    published = "${WISP_WYOMING_PUBLISH:-127.0.0.1:10300}"
    assert service["ports"] == [*plain["ports"], f"{published}:10300"]
    added = dict(service["environment"].items() - plain["environment"].items())
    assert added == {"WISP_WYOMING": 10300, "WISP_WYOMING_PUBLISHED": published}


def test_the_image_speaks_wyoming_without_multicast() -> None:
    assert "wyoming" in locked() and "zeroconf" not in locked()


def test_the_gpu_services_reach_their_gpu() -> None:
    services = compose()["services"]
    [device] = services["nvidia"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    assert "graphics" in values("gpu", "ENV")[0]  # Vulkan, for the container toolkit
    assert services["dri"]["devices"] == ["/dev/dri:/dev/dri"]


# Kubernetes


def manifest(name: str) -> Any:
    return documents(KUBERNETES / "base" / name)


def test_a_pod_is_locked_down_and_probed() -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == values("base", "USER")[0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    probe = container["readinessProbe"]
    assert Settings().probe_limit_s < probe["timeoutSeconds"] <= probe["periodSeconds"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    # A service named wisp would otherwise set WISP_PORT, which is a setting of ours.
    assert pod["enableServiceLinks"] is False


GIB = 2**30


def gibibytes(text: str) -> int:
    assert text.endswith("Gi")
    return int(text.removesuffix("Gi")) * GIB


def test_uploads_fit_into_a_pods_disk() -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    [container], [volume] = pod["containers"], pod["volumes"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    room = gibibytes(volume["emptyDir"]["sizeLimit"])
    assert (
        int(environment["WISP_SPOOL_BYTES"]) < room < gibibytes(container["resources"]["limits"]["ephemeral-storage"])
    )
    assert set(environment) <= VARIABLES


def test_a_pod_accepts_only_its_port_and_connects_to_nothing() -> None:
    spec = manifest("network-policy.yaml")["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"] and "egress" not in spec
    [rule] = spec["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http"] and {} not in rule["from"]


def test_everything_selects_the_deployment() -> None:
    deployment = manifest("deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("service.yaml")["spec"]["selector"].items() <= labels.items()
    assert manifest("disruption-budget.yaml")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("network-policy.yaml")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    target = manifest("autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    [port] = manifest("service.yaml")["spec"]["ports"]
    assert port["targetPort"] == deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_names_files_that_exist_and_this_version(overlay: str) -> None:
    kustomization = documents(KUBERNETES / overlay / "kustomization.yaml")
    for resource in kustomization["resources"]:
        base = KUBERNETES / overlay / resource
        assert all((base / name).is_file() for name in documents(base / "kustomization.yaml")["resources"])
    [image] = kustomization["images"]
    assert image["newTag"] == f"{PROJECT['version']}-{overlay.split('-')[0]}"
    patch = documents(KUBERNETES / overlay / kustomization["patches"][0]["path"])
    [container] = patch["spec"]["template"]["spec"]["containers"]
    assert {"memory"} <= set(container["resources"]["limits"])
    assert {variable["name"] for variable in container.get("env", [])} <= VARIABLES
    assert any("gpu" in name for name in container["resources"]["limits"]) == overlay.startswith("gpu")


def test_keys_can_come_from_a_secret() -> None:
    patch = documents(KUBERNETES / "api-keys/container.yaml")["spec"]["template"]["spec"]
    [container], [volume] = patch["containers"], patch["volumes"]
    [mount] = container["volumeMounts"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert set(variables) <= VARIABLES
    assert variables["WISP_API_KEYS_FILE"].startswith(mount["mountPath"] + "/") and mount["name"] == volume["name"]
    assert variables["WISP_ALLOW_PUBLIC_WITHOUT_KEY"] == "no" and "optional" not in volume["secret"]


def metric_names(autoscaler: Any) -> list[str]:
    """The metrics that an autoscaler uses."""
    return [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]]


def test_the_queues_metrics_exist() -> None:
    text = (ROOT / "service/http/metrics.py").read_text()
    patch = documents(KUBERNETES / "autoscale-by-queue/autoscaler.yaml")
    rules = documents(KUBERNETES / "autoscale-by-queue/rule.yaml")
    assert metric_names(patch) == [rule["name"]["matches"] for rule in rules] == ["wisp_jobs_waiting", "wisp_uploads"]
    for rule in rules:
        name = rule["name"]["matches"]
        assert (
            f'"{name.removeprefix("wisp_")}"' in text
            and f"({name}{{" in rule["metricsQuery"]
            and rule["seriesQuery"].startswith(name)
        )
    annotations = documents(KUBERNETES / "autoscale-by-queue/deployment.yaml")["spec"]["template"]["metadata"]
    assert annotations["annotations"]["prometheus.io/port"] == values("base", "EXPOSE")[0]


def rendered(folder: Path) -> list[Any]:
    """The manifests of an overlay, as kubectl makes them."""
    text = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders(overlay: str) -> None:
    kinds = sorted(document["kind"] for document in rendered(KUBERNETES / overlay))
    assert kinds == ["Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_components_go_with_every_overlay(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    with (tmp_path / "kubernetes" / overlay / "kustomization.yaml").open("a") as file:
        file.write("components:\n  - ../api-keys\n  - ../autoscale-by-queue\n")
    documents = {document["kind"]: document for document in rendered(tmp_path / "kubernetes" / overlay)}
    assert metric_names(documents["HorizontalPodAutoscaler"]) == ["wisp_jobs_waiting", "wisp_uploads"]
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["WISP_ALLOW_PUBLIC_WITHOUT_KEY"] == "no" and "WISP_API_KEYS_FILE" in variables
    assert variables["WISP_METRICS"] == "public"
    assert {volume["name"] for volume in pod["volumes"]} == {"uploads", "api-keys"}

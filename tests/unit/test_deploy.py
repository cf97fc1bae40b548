"""The files in deploy/ against the published schemas of their formats, and against the program they run.

Belongs here: what can be said of deployment files without a container engine or a cluster. Must not know: how the program works.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from parshall.errors import REFUSED, USAGE
from parshall.settings import Settings, load_settings, scalar_fields
from parshall.settings_sources import variable_name
from parshall.sizing import Machines

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# The oldest and the newest Kubernetes the base is for: ReadWriteOncePod is stable since 1.29.
KUBERNETES_VERSIONS = ["1.29", "1.37"]

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MANIFESTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((KUBERNETES / name).read_text())
]
SECRET = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text())
JOBS: list[dict[str, Any]] = [yaml.safe_load((KUBERNETES / f"{name}-job.example.yaml").read_text()) for name in ("drain", "audit")]
ARCHIVES, ARCHIVE = yaml.safe_load_all((KUBERNETES / "archive-cronjob.example.yaml").read_text())
ARCHIVING: dict[str, Any] = {**ARCHIVE["spec"]["jobTemplate"], "metadata": ARCHIVE["metadata"]}
WORKLOADS = [manifest for manifest in MANIFESTS if manifest["kind"] in ("StatefulSet", "Deployment")]

INGEST, RATER = "parshall-ingest", "parshall-rater"


def settings() -> Settings:
    return load_settings(str(DEPLOY / "parshall.toml"), environment={}, options={})


def manifest_of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in MANIFESTS if manifest["kind"] == kind and manifest["metadata"]["name"] == name]
    return found


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    assert isinstance(container, dict)
    return container


def own_services() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("parshall:"):
            yield name, service


# --- Published schemas


def test_compose_file_matches_the_compose_specification() -> None:
    schema = json.loads((resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(COMPOSE)


def test_the_compose_schema_refuses_a_misspelt_key() -> None:
    schema = json.loads((resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    wrong = {"services": {"redis": {"image": "redis", "stop_grace": "1s"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validators.validator_for(schema)(schema).validate(wrong)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "manifest", [*MANIFESTS, SECRET, *JOBS, ARCHIVES, ARCHIVE], ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}"
)
def test_manifest_matches_the_kubernetes_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kubernetes_schema_refuses_a_misspelt_key() -> None:
    wrong = json.loads(json.dumps(manifest_of("StatefulSet", INGEST)))
    pod_of(wrong)["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[-1], strict=True)


def test_dockerfile_is_clean_to_hadolint() -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--no-color", "--failure-threshold", "style", DEPLOY / "Dockerfile"],
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (0, "")


# --- The configuration


def test_the_example_configuration_is_right() -> None:
    assert settings().address.port == 8080


def test_the_example_is_the_one_that_kubernetes_gets() -> None:
    assert (DEPLOY / "parshall.toml").resolve() == KUBERNETES / "parshall.toml"


def variables() -> Iterator[tuple[str, str]]:
    """Every PARSHALL_ variable that a deployment file sets, with the place."""
    for service, definition in own_services():
        for name in definition["environment"]:
            yield f"compose.yaml {service}", name
    for workload in [*WORKLOADS, *JOBS, ARCHIVING]:
        for entry in container_of(workload)["env"]:
            yield workload["metadata"]["name"], entry["name"]


def test_each_variable_is_a_setting() -> None:
    known = {variable_name(path) for path, _ in scalar_fields()} | {"PARSHALL_URL"}  # of commands
    assert {(place, name) for place, name in variables() if name not in known} == set()


@pytest.mark.parametrize("environment", [definition["environment"] for _, definition in own_services()])
def test_the_variables_of_compose_make_a_right_configuration(environment: dict[str, str]) -> None:
    given = {name: re.sub(r"\$\{\w+:\?[^}]*\}", "secret", value) for name, value in environment.items()}
    made = load_settings(str(DEPLOY / "parshall.toml"), environment=given, options={})
    assert None not in (made.redis.url, made.kafka.bootstrap, made.postgres.dsn)


def given_by(values: dict[str, str]) -> dict[str, str]:
    """The variables of the pods, where the secret has these values."""
    given: dict[str, str] = {}
    for workload in [*WORKLOADS, *JOBS, ARCHIVING]:
        for entry in container_of(workload)["env"]:
            if "value" in entry:
                given[entry["name"]] = entry["value"]
                continue
            reference = entry["valueFrom"]["secretKeyRef"]
            assert reference["name"] == SECRET["metadata"]["name"]
            if reference["key"] in values or not reference.get("optional"):
                given[entry["name"]] = values[reference["key"]]
    return given


def test_the_example_secret_makes_a_right_configuration() -> None:
    made = load_settings(str(DEPLOY / "parshall.toml"), environment=given_by(SECRET["stringData"]), options={})
    assert None not in (made.redis.url, made.kafka.bootstrap, made.postgres.dsn)


def test_the_examples_for_a_secured_kafka_make_a_right_configuration(tmp_path: Path) -> None:
    file = tmp_path / "parshall.toml"
    file.write_text(re.sub(r"^# (?=\[kafka\]|[a-z_]+ = (?!.*kafka-ca))", "", (DEPLOY / "parshall.toml").read_text(), flags=re.MULTILINE))
    secret = yaml.safe_load(re.sub(r"# (?=kafka-\w+:)", "", (KUBERNETES / "secret.example.yaml").read_text()))
    made = load_settings(str(file), environment=given_by(secret["stringData"]), options={}).kafka
    assert (made.security, made.username, made.password) == ("sasl_tls", "parshall", "password")
    assert (made.topic_prefix, made.consumer_group) == ("eu.", "eu-rater")


# --- What runs


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in own_services():
        yield f"compose.yaml {name}", service["command"]
    for workload in WORKLOADS:
        yield workload["metadata"]["name"], container_of(workload)["args"]


@pytest.mark.parametrize(("place", "command"), list(commands()), ids=[place for place, _ in commands()])
def test_each_command_is_one_of_the_program(place: str, command: list[str]) -> None:
    role, *options = command
    told = subprocess.run([sys.executable, "-m", "parshall", role, "--help"], capture_output=True, text=True, cwd=PROJECT)
    assert told.returncode == 0, told.stderr
    for option in options[::2]:
        assert option in told.stdout, f"{place}: `parshall {role}` has no {option}"


def test_the_configuration_file_is_where_the_commands_look() -> None:
    (target,) = {command[command.index("--config") + 1] for _, command in commands()}
    for _, service in own_services():
        assert [config["target"] for config in service["configs"]] == [target]
    for workload in WORKLOADS:
        mounts = {mount["name"]: mount["mountPath"] for mount in container_of(workload)["volumeMounts"]}
        (generator,) = KUSTOMIZATION["configMapGenerator"]
        (volume,) = [volume for volume in pod_of(workload)["volumes"] if "configMap" in volume]
        assert volume["configMap"]["name"] == generator["name"]
        assert [f"{mounts[volume['name']]}/{file}" for file in generator["files"]] == [target]


def test_one_image_name_and_version_everywhere() -> None:
    version = re.search(r'^version = "(.*)"$', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert {service["image"] for _, service in own_services()} == {f"parshall:{version[1]}"}
    assert [(image["name"], image["newTag"]) for image in KUSTOMIZATION["images"]] == [("parshall", version[1])]
    assert {container_of(workload)["image"] for workload in WORKLOADS} == {"parshall"}
    assert {container_of(job)["image"] for job in [*JOBS, ARCHIVING]} == {f"parshall:{version[1]}"}
    assert f"-t parshall:{version[1]} " in DOCKERFILE


def test_other_images_are_pinned_to_a_version() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()] + re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [image for image in images if not re.fullmatch(r"[a-z/]+:\d+\.\d+\.?\d*(-[a-z]+)*", image)] == []


def test_the_ports_are_the_same_everywhere_and_senders_reach_one_alone() -> None:
    port, admin = settings().address.port, settings().admin_address
    assert admin is not None
    assert f"\nEXPOSE {port} {admin.port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{port}/healthz" in DOCKERFILE
    for _, service in own_services():
        assert [published.split(":")[2] for published in service["ports"]] == [str(port), str(admin.port)]
        assert service["environment"]["PARSHALL_URL"] == f"http://127.0.0.1:{admin.port}"
    for workload in WORKLOADS:
        container = container_of(workload)
        assert [(entry["name"], entry["containerPort"]) for entry in container["ports"]] == [("http", port), ("admin", admin.port)]
        assert workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(admin.port)
        assert {"name": "PARSHALL_URL", "value": f"http://127.0.0.1:{admin.port}"} in container["env"]
    reached = {
        manifest["metadata"]["name"]: [entry["targetPort"] for entry in manifest["spec"]["ports"]]
        for manifest in MANIFESTS
        if manifest["kind"] == "Service"
    }
    assert reached == {INGEST: ["http"], RATER: ["http"], f"{INGEST}-pods": ["http", "admin"]}


def test_what_asks_each_pod_is_shown_with_the_admin_port() -> None:
    admin = settings().admin_address
    assert admin is not None
    files = [*(PROJECT / "parshall").glob("*.py"), *(PROJECT / "docs").glob("*.md"), *KUBERNETES.glob("*.yaml")]
    shown = [port for file in files for port in re.findall(rf"{INGEST}-pods:(\d+) --each-address", file.read_text())]
    assert shown == [str(admin.port)] * 4


def test_the_image_overrides_no_setting_of_the_file() -> None:
    """A variable wins over the file: a journal could go into a volume that nobody named."""
    assert re.findall(r"PARSHALL_\w+=", DOCKERFILE) == []


def test_the_data_folder_is_on_a_volume() -> None:
    data = settings().data
    assert f"\nVOLUME {data}\n" in DOCKERFILE
    assert f"\nWORKDIR {data}\n" in DOCKERFILE
    assert not Path(Settings().data).is_absolute(), "a file that does not name it has it there"
    assert [volume.split(":")[1] for volume in COMPOSE["services"]["ingest"]["volumes"]] == [data]
    ingest = manifest_of("StatefulSet", INGEST)
    (claim,) = ingest["spec"]["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": data} in container_of(ingest)["volumeMounts"]


# --- What keeps the promise


def test_a_journal_belongs_to_one_pod() -> None:
    ingest = manifest_of("StatefulSet", INGEST)
    (claim,) = ingest["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert ingest["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    headless = manifest_of("Service", ingest["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"


def test_there_is_time_to_drain_before_the_kill() -> None:
    drain_s = settings().ingest.drain_s
    assert COMPOSE["services"]["ingest"]["stop_grace_period"] == f"{drain_s + 15}s"
    ingest = manifest_of("StatefulSet", INGEST)
    pause_s = int(container_of(ingest)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod_of(ingest)["terminationGracePeriodSeconds"] >= drain_s + pause_s + 15
    assert "\nSTOPSIGNAL SIGTERM\n" in DOCKERFILE


def test_nothing_runs_as_root() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.rindex("\nUSER ") > DOCKERFILE.rindex("\nFROM ")
    for workload in WORKLOADS:
        pod, container = pod_of(workload)["securityContext"], container_of(workload)["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == int(user)
        assert container == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_each_workload_is_found_probed_and_protected() -> None:
    for workload in WORKLOADS:
        name = workload["metadata"]["name"]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
        assert manifest_of("Service", name)["spec"]["selector"] == labels
        assert manifest_of("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == labels
        assert manifest_of("PodDisruptionBudget", name)["spec"]["maxUnavailable"] < workload["spec"]["replicas"]
        probes = {kind: container_of(workload)[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert probes == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        # A Service called parshall-x would set PARSHALL_X_… variables in every pod.
        assert pod_of(workload)["enableServiceLinks"] is False


def test_claims_are_never_evicted() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--maxmemory-policy"], options["--lazyfree-lazy-expire"], options["--appendonly"]) == ("noeviction", "yes", "yes")


def test_each_store_of_compose_is_waited_for_and_kept() -> None:
    stores = [name for name in COMPOSE["services"] if name not in dict(own_services())]
    for _, service in own_services():
        assert service["depends_on"] == {name: {"condition": "service_healthy"} for name in stores}
    for name in stores:
        assert "healthcheck" in COMPOSE["services"][name]
        assert [volume.split(":")[0] for volume in COMPOSE["services"][name]["volumes"]] == [name]
        assert name in COMPOSE["volumes"]


# --- Jobs that are made by hand


def test_a_start_may_take_twice_as_long_as_is_planned() -> None:
    probe = container_of(manifest_of("StatefulSet", INGEST))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 2 * Machines().start_s


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_a_job_is_a_command_on_the_volumes_of_writers(job: dict[str, Any]) -> None:
    """`{claim}-{set}-{number}` is what a StatefulSet calls its claims."""
    ingest = manifest_of("StatefulSet", INGEST)
    pod, container = pod_of(job), container_of(job)
    assert (pod["securityContext"], container["securityContext"]) == (
        pod_of(ingest)["securityContext"],
        container_of(ingest)["securityContext"],
    )
    (template,) = ingest["spec"]["volumeClaimTemplates"]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    }
    of_writers = re.compile(rf"{template['metadata']['name']}-{ingest['metadata']['name']}-(\d+)")
    assert claims
    assert all(of_writers.fullmatch(claim) for claim in claims.values())

    args = container["args"]
    assert_is_a_command(args)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    named = {str(Path(arg).parents[1]) for arg in args if "/writers/" in arg}
    assert named == {path for path, mount in mounts.items() if mount["name"] in claims}
    assert settings().data in mounts  # the configuration names it, and it can be written to
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert all(manifest["spec"]["selector"].items() - labels.items() for manifest in MANIFESTS if manifest["kind"] == "Service")


def assert_is_a_command(args: list[str]) -> None:
    words = args[: next(at for at, arg in enumerate(args) if not re.fullmatch("[a-z]+", arg))]
    told = subprocess.run([sys.executable, "-m", "parshall", *words, "--help"], capture_output=True, text=True, cwd=PROJECT)
    assert told.returncode == 0, told.stderr
    assert [arg for arg in args if arg.startswith("--") and arg not in told.stdout] == []


def test_archives_go_to_a_volume_of_their_own() -> None:
    pod, container = pod_of(ARCHIVING), container_of(ARCHIVING)
    ingest = manifest_of("StatefulSet", INGEST)
    assert (pod["securityContext"], container["securityContext"]) == (
        pod_of(ingest)["securityContext"],
        container_of(ingest)["securityContext"],
    )
    assert_is_a_command(container["args"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (volume,) = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert volume["persistentVolumeClaim"]["claimName"] == ARCHIVES["metadata"]["name"]
    assert container["args"][1] == mounts[volume["name"]]
    assert ARCHIVE["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_drain_is_repeated_but_for_what_a_person_must_decide() -> None:
    (drain, audit) = JOBS
    (rule,) = drain["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container_of(drain)["name"], "operator": "In", "values": [USAGE, REFUSED]}
    assert all(mount.get("readOnly") for mount in container_of(audit)["volumeMounts"] if mount["name"].startswith("journal"))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_a_finished_job_is_deleted_before_it_is_in_the_way(job: dict[str, Any]) -> None:
    """Its name is taken, and the object of its pod holds the claims, until then; its log goes with it."""
    name = job["metadata"]["name"]
    assert "generateName" not in job["metadata"] and "ttlSecondsAfterFinished" not in job["spec"]
    (file,) = [file for file in KUBERNETES.glob("*-job.example.yaml") if yaml.safe_load(file.read_text()) == job]
    head = " ".join(line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#"))
    assert 0 < head.find(f"`kubectl logs job/{name}`") < head.find(f"`kubectl delete job {name}`")
    assert f"`kubectl delete job {name}`" in (PROJECT / "docs" / "OPERATING.md").read_text()


def test_no_claim_is_deleted_while_a_job_holds_it() -> None:
    paragraphs = (PROJECT / "docs" / "OPERATING.md").read_text().split("\n\n")
    deleting = [paragraph for paragraph in paragraphs if "`kubectl delete pvc" in paragraph]
    assert len(deleting) == 2
    assert all(0 < paragraph.find("`kubectl delete job ") < paragraph.find("`kubectl delete pvc") for paragraph in deleting)


# --- What goes into the image


def test_the_kustomization_uses_nothing_that_these_tests_do_not_read() -> None:
    assert set(KUSTOMIZATION) == {"apiVersion", "kind", "resources", "configMapGenerator", "images"}


def test_the_image_gets_the_packages_and_no_more() -> None:
    allowed = {line[1:].rstrip("/") for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", "ingest", "dedupe", "buffer", "rater", "parshall"}
    assert [name for name in sorted(allowed) if not (PROJECT / name).exists()] == []

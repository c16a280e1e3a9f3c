"""Dockerfile, compose.yaml and deploy/kubernetes: what they name is the project's and the server's.

Their commands are checked where those of the pages are: test_docs.py.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tessella.serving.metrics import ServerMetrics
from tessella.serving.middleware import needs_key, read_api_keys
from tessella.serving.server import _LATE_SECONDS
from tessella.serving.settings import ServeSettings

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "deploy" / "kubernetes"
KEY = "0123456789abcdef"


def read(name: str) -> dict[str, Any]:
    """Reads the objects of a file, by kind and name."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    objects = list(yaml.safe_load_all(text))
    assert all({"apiVersion", "kind", "metadata", "spec"} == set(one) for one in objects)
    return {f"{one['kind']}/{one['metadata']['name']}": one["spec"] for one in objects}


SERVER = read("server.yaml")
AUTOSCALING = read("autoscaling.yaml")
POD = SERVER["Deployment/tessella"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def test_probes_and_services_ask_what_is_there() -> None:
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness")}
    assert all(asked == {"path": "/readyz", "port": "http"} for asked in paths.values())
    assert CONTAINER["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    labels = SERVER["Deployment/tessella"]["template"]["metadata"]["labels"]
    for name in ("Service/tessella", "Service/tessella-replicas"):
        assert SERVER[name]["selector"] == labels
        assert [port["targetPort"] for port in SERVER[name]["ports"]] == ["http"]
    for spec in (*SERVER.values(), AUTOSCALING["PodMonitor/tessella"]):
        assert spec["selector"] in (labels, {"matchLabels": labels})
    [endpoint] = AUTOSCALING["PodMonitor/tessella"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert AUTOSCALING["ScaledObject/tessella"]["scaleTargetRef"] == {"name": "tessella"}


def test_replicas_follow_metrics_that_exist() -> None:
    metrics = ServerMetrics()
    metrics.seconds.labels("paint").observe(1.0)
    rendered = metrics.render().decode()
    queries = [
        trigger["metadata"]["query"] for trigger in AUTOSCALING["ScaledObject/tessella"]["triggers"]
    ]
    assert len(queries) == 2
    for query in queries:
        [name] = re.findall(r"\btessella_\w+", query)
        phase = re.search(r'phase="\w+"', query)
        assert f"\n{name}{'{' + phase.group() + '}' if phase else ''} " in rendered


class Metrics(BaseHTTPRequestHandler):
    """A server that is too busy for the first look, and has an empty queue at the third."""

    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == f"Bearer {KEY}" and self.path == "/metrics"
        self.statuses.append((200 if self.statuses else 503) if is_known else 401)
        metrics = ServerMetrics()
        metrics.queue.set(3 - len(self.statuses))
        self.send_response(self.statuses[-1])
        self.end_headers()
        self.wfile.write(metrics.render())

    def log_message(self, *given: object) -> None:
        pass


def test_a_pod_stops_once_its_queue_is_empty(tmp_path: Path) -> None:
    """SIGTERM refuses what is queued; the hook before it waits until nothing is."""
    keys = tmp_path / "api-keys"
    keys.write_text(f"# ours\n\n {KEY}\nanother-key-of-some-length\n", encoding="utf-8")
    assert read_api_keys(None, keys)[0] == KEY
    python, option, code = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, option) == ("python", "-c")
    Metrics.statuses.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for old, new in (
                ("/etc/tessella/api-keys", str(keys)),
                (":8000", f":{server.server_port}"),
                ("sleep(5)", "sleep(0)"),
            ):
                assert code.count(old) == 1
                code = code.replace(old, new)
            subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        finally:
            server.shutdown()
            thread.join()
    assert Metrics.statuses == [503, 200, 200]


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    code = CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1]
    pauses = re.findall(r"time\.sleep\(([\d.]+)\)", code)
    [wait] = re.findall(r"time\.monotonic\(\) \+ (\d+)", code)
    [patience] = re.findall(r"timeout=(\d+)", code)
    hook = sum(map(float, pauses)) + int(wait) + int(patience)
    end = ServeSettings().shutdown_timeout_seconds + _LATE_SECONDS
    assert POD["terminationGracePeriodSeconds"] >= hook + end
    # One that hangs is not waited for.
    assert CONTAINER["livenessProbe"]["terminationGracePeriodSeconds"] < hook
    # A proxy's first look at a new replica comes before the old one is gone.
    assert SERVER["Deployment/tessella"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", ["server.yaml", "autoscaling.yaml"])
def test_the_page_names_the_file(name: str) -> None:
    page = REPOSITORY / "docs" / "how-to" / "kubernetes.md"
    assert f"kubectl apply -f deploy/kubernetes/{name}" in page.read_text(encoding="utf-8")


# --- containers -----------------------------------------------------------------------------


def instructions(path: str) -> list[tuple[str, str]]:
    """Reads a Dockerfile: each instruction with its argument."""
    text = (REPOSITORY / path).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


DOCKERFILE = instructions("Dockerfile")


def arguments_of(instruction: str, of: list[tuple[str, str]] = DOCKERFILE) -> list[str]:
    return [argument for name, argument in of if name == instruction]


def test_what_the_image_copies_is_there_and_is_sent() -> None:
    copies = [shlex.split(one)[:-1] for one in arguments_of("COPY") if not one.startswith("--")]
    copied = {name for names in copies for name in names}
    assert all((REPOSITORY / name).exists() for name in copied)
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    # All that the build reads.
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} < copied


@pytest.mark.parametrize("path", ["Dockerfile", "spaces/Dockerfile"])
def test_the_extras_exist_and_the_server_is_not_root(path: str) -> None:
    found = instructions(path)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [extras] = re.findall(r"\[([\w,]+)\]['\"]", "\n".join(arguments_of("RUN", found)))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    last_stage = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    names = [name for name, _ in last_stage]
    [user] = arguments_of("USER", last_stage)
    assert user.partition(":")[0] not in ("", "0", "root")
    assert "RUN" not in names[names.index("USER") :]
    if path == "Dockerfile":
        assert user == "65534:65534"  # the pods' user, which the models' files are for
        assert POD["securityContext"]["runAsUser"] == 65534


@pytest.mark.skipif(os.name == "nt", reason="the image's commands are for sh")
def test_pytorch_comes_in_the_pinned_version() -> None:
    [command] = [one for one in arguments_of("RUN") if "TORCH_INDEX" in one]
    [pin] = re.findall(r'"\$\((.+?)\)"', command)
    done = subprocess.run(["sh", "-c", pin], cwd=REPOSITORY, capture_output=True, timeout=60)
    assert re.fullmatch(rb"torch==[\d.]+\n", done.stdout)
    assert "--no-deps" in command  # its index lacks other pinned versions


class Health(BaseHTTPRequestHandler):
    """A server that is well, and then is not."""

    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        assert self.path == "/healthz"
        self.send_response(self.statuses.pop(0))
        self.end_headers()

    def log_message(self, *given: object) -> None:
        pass


def test_the_health_check_asks_the_server() -> None:
    [check] = arguments_of("HEALTHCHECK")
    python, option, code = json.loads(check.partition(" CMD ")[2])
    assert (python, option) == ("python", "-c")
    port = ServeSettings().port
    assert arguments_of("EXPOSE") == [str(port)]
    assert not needs_key("/healthz")
    Health.statuses[:] = [200, 503]
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert code.count(f"127.0.0.1:{port}/") == 1
            code = code.replace(f":{port}/", f":{server.server_port}/")
            ends = [
                subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
                for _ in range(2)
            ]
        finally:
            server.shutdown()
            thread.join()
    assert [end.returncode for end in ends] == [0, 1]
    assert not Health.statuses


def test_compose_keeps_the_server_to_this_machine() -> None:
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert "profiles" not in services["server"]
    assert services["gpu"]["profiles"] == ["gpu"]
    [device] = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    declared = {one.partition("=")[0] for one in arguments_of("ARG")}
    assert set(services["gpu"]["build"]["args"]) <= declared
    ports = set()
    for service in services.values():
        [(address, outer, inner)] = [one.split(":") for one in service["ports"]]
        # It needs no key: others must not reach it, nor pages by another host name.
        assert "--insecure" in service["command"]
        assert (address, int(inner)) == ("127.0.0.1", ServeSettings().port)
        ports.add(outer)
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        latest = ServeSettings().shutdown_timeout_seconds + _LATE_SECONDS
        assert float(service["stop_grace_period"].removesuffix("s")) > latest
    assert len(ports) == 2  # both may run
    # The one place that may be written has the caches.
    assert any("XDG_CACHE_HOME=/tmp/" in one for one in arguments_of("ENV"))

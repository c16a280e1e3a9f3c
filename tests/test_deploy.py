"""deploy/kubernetes: its addresses, time-outs and metrics are the server's.

Its command is checked where those of the pages are: test_docs.py.
"""

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tessella.serving.metrics import ServerMetrics
from tessella.serving.middleware import read_api_keys
from tessella.serving.server import _LATE_SECONDS
from tessella.serving.settings import ServeSettings

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "kubernetes"
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
    page = FOLDER.parent.parent / "docs" / "how-to" / "kubernetes.md"
    assert f"kubectl apply -f deploy/kubernetes/{name}" in page.read_text(encoding="utf-8")

"""The backend and the proxies: their configuration, their start, and whether they answer.

All are set up as the same proxy: HTTP/1.1 with connections kept on both sides, a request's body read whole into
memory before it is handed on, the answer passed on, no access log, nothing tried twice.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from process import Process, ProcessError, free_port

# The program and the Debian package that it comes with.
NEEDED = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk"}
ECHO_MODULE = "/usr/lib/nginx/modules/ngx_http_echo_module.so"
READY_S_MAX = 10.0
BODY_BYTES_MAX = 10 << 20
# What a replica answers, about 300 bytes.
ANSWER = (
    '{"model":"echo","predictions":['
    '{"label":"goldfish","index":1,"probability":0.9973375},{"label":"tench","index":0,"probability":0.0011843},'
    '{"label":"rock beauty","index":392,"probability":0.0004211},{"label":"axolotl","index":29,"probability":0.0001102}'
    '],"timing_ms":{"queue":0.03,"decode":0.63,"infer":10.86}}'
)


@dataclass(frozen=True)
class Setting:
    """What is the same for all."""

    elastic: Path
    scratch: Path
    threads: int
    proxy_cores: tuple[int, ...]
    load_cores: tuple[int, ...]
    slots: int
    body_bytes: int


@dataclass(frozen=True)
class Server:
    """A running backend or proxy."""

    name: str
    process: Process
    port: int
    version: str

    @property
    def url(self) -> str:
        """Where it takes requests."""
        return f"http://127.0.0.1:{self.port}/predict"


def missing_programs() -> list[str]:
    """What is not installed, in words."""
    needed = NEEDED.items()
    lacking = [f"{program} (Debian package {package})" for program, package in needed if not shutil.which(program)]
    if not lacking and not Path(ECHO_MODULE).exists():
        lacking.append(f"nginx's echo module, {ECHO_MODULE} (Debian package libnginx-mod-http-echo)")
    return lacking


def backend(setting: Setting) -> Server:
    """nginx as a replica that reads a whole request, answers at once and says that it has `slots` slots."""
    readiness = f'{{"ready":true,"model":"echo","slots":{setting.slots}}}'
    # `return` alone would answer before the body was read; the echo module reads it first.
    locations = f"""
        location = /readyz {{ default_type application/json; return 200 '{readiness}'; }}
        location = /predict {{ echo_read_request_body; echo_exec @answer; }}
        location @answer {{ default_type application/json; return 200 '{ANSWER}'; }}"""
    return _nginx("backend", setting, len(setting.load_cores), setting.load_cores, "", locations, echo=True)


def nginx(setting: Setting, upstream_port: int) -> Server:
    """nginx as the proxy."""
    upstream = f"""
    upstream replica {{
        server 127.0.0.1:{upstream_port};
        keepalive {setting.slots};
        keepalive_requests 1000000000;
    }}"""
    locations = """
        location / {
            proxy_pass http://replica;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering on;
            proxy_next_upstream off;
        }"""
    return _nginx("nginx", setting, setting.threads, setting.proxy_cores, upstream, locations, echo=False)


def _nginx(
    name: str, setting: Setting, workers: int, cores: tuple[int, ...], upstream: str, locations: str, *, echo: bool
) -> Server:
    folder = setting.scratch / name
    folder.mkdir()
    port = free_port()
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"""{f"load_module {ECHO_MODULE};" if echo else ""}
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
pid {folder}/nginx.pid;
worker_processes {workers};
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_max_body_size {BODY_BYTES_MAX};
    client_body_buffer_size {max(setting.body_bytes * 2, 16384)};
{temporary}
{upstream}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
{locations}
    }}
}}
"""
    )
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]
    return _started(Process(name, command, setting.scratch, cores), name, port, _version(["nginx", "-v"]))


def haproxy(setting: Setting, upstream_port: int) -> Server:
    """HAProxy as the proxy."""
    port = free_port()
    config = setting.scratch / "haproxy.cfg"
    # A body is held whole only where a buffer has room for it, its head, and what is kept free for rewriting.
    config.write_text(
        f"""global
    nbthread {setting.threads}
    maxconn 4096
    tune.bufsize {max(setting.body_bytes * 2, 16384)}
defaults
    mode http
    retries 0
    option http-buffer-request
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-request 60s
    timeout http-keep-alive 300s
frontend front
    bind 127.0.0.1:{port} backlog 4096
    default_backend replicas
backend replicas
    server replica 127.0.0.1:{upstream_port} maxconn {setting.slots}
"""
    )
    command = ["haproxy", "-db", "-q", "-f", str(config)]
    process = Process("haproxy", command, setting.scratch, setting.proxy_cores)
    return _started(process, "haproxy", port, _version(["haproxy", "-v"]))


def elastic(setting: Setting, upstream_port: int) -> Server:
    """The dispatcher, with as many worker threads as the others have."""
    command = [str(setting.elastic), "dispatch", "--port", "0", "--replica", f"http://127.0.0.1:{upstream_port}"]
    environment = {"TOKIO_WORKER_THREADS": str(setting.threads), "ELASTIC_LOG": "warn"}
    process = Process("elastic", command, setting.scratch, setting.proxy_cores, environment)
    try:
        (_, port) = process.listens()[0]
    except ProcessError:
        process.end()
        raise
    return _started(process, "elastic", port, _version([str(setting.elastic), "--version"]))


PROXIES = {"nginx": nginx, "haproxy": haproxy, "elastic": elastic}


def _started(process: Process, name: str, port: int, version: str) -> Server:
    """Waits until it listens and answers, or ends it and says why not."""
    try:
        if port not in [port for _, port in process.listens()]:
            raise ProcessError(f"{name} does not listen on port {port}")
        give_up = time.monotonic() + READY_S_MAX
        while (seen := _ask(port)) != 200:
            if time.monotonic() > give_up or not process.alive():
                raise ProcessError(f"{name} does not answer, last seen {seen}: {process.last_words()}")
            time.sleep(0.05)
    except BaseException:
        process.end()
        raise
    return Server(name, process, port, version)


def _ask(port: int) -> int | str:
    """Status of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("POST", "/predict", b"x", {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    words = (done.stdout + done.stderr).replace("/", " ").split()
    return next((word for word in words if word[0].isdigit()), "unknown")

#!/usr/bin/env python3
"""What scripts/test-image.sh cannot do in shell: a name server, free ports, and the clock of a start."""

import http.client
import os
import pathlib
import socket
import socketserver
import struct
import sys
import threading
import time

# As a cluster's name server knows them. All lead to this machine.
DOMAIN = "elastic.svc.cluster.local"
FOUR, SIX = 1, 28
NAMES = {
    f"one.{DOMAIN}": ["127.0.0.1"],
    f"few.{DOMAIN}": ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
    f"many.{DOMAIN}": [f"127.0.1.{last}" for last in range(1, 61)],
    f"both.{DOMAIN}": ["127.0.0.1", "::1"],
    f"six.{DOMAIN}": ["::1"],
    f"monitor.{DOMAIN}": ["127.0.0.1"],
    "other.svc.cluster.local": ["127.0.0.1"],
    "absolute.test": ["127.0.0.1"],
}
# No answer at all, as of a server that is away.
SILENT = "silent"


def question(query):
    """The name asked for, the type, and where the question ends."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += query[at] + 1
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return ".".join(labels), kind, at + 5


def answer(query, over):
    name, kind, end = question(query)
    print(over, kind, name, flush=True)
    if name.startswith(SILENT):
        return None
    family = {FOUR: socket.AF_INET, SIX: socket.AF_INET6}.get(kind)
    wanted = [at for at in NAMES.get(name, []) if family and (":" in at) == (kind == SIX)]
    records = b""
    for address in wanted:
        data = socket.inet_pton(family, address)
        records += struct.pack("!HHHIH", 0xC00C, kind, 1, 5, len(data)) + data
    flags, count = 0x8580 | (0 if name in NAMES else 3), len(wanted)
    if over == "udp" and end + len(records) > 512:
        flags, count, records = flags | 0x0200, 0, b""
    return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + query[12:end] + records


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        query, server = self.request
        if (reply := answer(query, "udp")) is not None:
            server.sendto(reply, self.client_address)


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        while len(head := self.rfile.read(2)) == 2:
            (length,) = struct.unpack("!H", head)
            if (reply := answer(self.rfile.read(length), "tcp")) is not None:
                self.wfile.write(struct.pack("!H", len(reply)) + reply)


class Streams(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def names(address):
    """Answers for NAMES at port 53 of ADDRESS, and writes down what was asked."""
    datagrams = socketserver.UDPServer((address, 53), Datagram)
    threading.Thread(target=datagrams.serve_forever, daemon=True).start()
    streams = Streams((address, 53), Stream)
    print("listening", flush=True)
    streams.serve_forever()


def ports(count):
    """COUNT ports that are free now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(count))]
    print(*(one.getsockname()[1] for one in held))


def ready(port, seconds):
    """Waits for 200 at /readyz; the time on the clock that counts from the machine's start."""
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=1)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                print(time.clock_gettime(time.CLOCK_BOOTTIME))
                return
        except OSError:
            pass
        time.sleep(0.001)
    sys.exit(f"port {port} was not ready within {seconds} s")


def started(process):
    """When a process started, on the same clock, to a hundredth of a second."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    print(int(fields[19]) / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    {"names": names, "ports": ports, "ready": ready, "started": started}[sys.argv[1]](*sys.argv[2:])

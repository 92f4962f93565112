# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""How fast a bare socket hands over one message after the other: `push.py host port size seconds`. No producer that
waits until the broker has its message is faster."""

import json
import socket
import sys
import time

import hiredis

host, port, size, seconds = sys.argv[1:]
command = hiredis.pack_command(("LPUSH", "bare", b"x" * int(size)))
with socket.create_connection((host, int(port))) as link:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    calls = 0
    began, used = time.perf_counter(), time.process_time()
    end = began + float(seconds)
    while time.perf_counter() < end:
        for _ in range(20):
            link.sendall(command)
            link.recv(64)
        calls += 20
    took, used = time.perf_counter() - began, time.process_time() - used
print("answer", json.dumps({"calls": calls, "seconds": took, "cpu": used}))

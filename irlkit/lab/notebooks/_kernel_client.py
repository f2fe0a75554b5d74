"""What Jupyter starts as the kernel of a page: asks ``serving`` for a fork and lives as long as it.

Run by its path, without the package: it must stay small.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    """Ask for a kernel, pass interrupts on, and end with it; it ends with this process."""
    address, connection_file = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    signal.signal(signal.SIGINT, lambda *_: server.sendall(b"i"))
    request = {"connection_file": connection_file, "cwd": os.getcwd(), "env": dict(os.environ)}
    text = json.dumps(request).encode()
    socket.send_fds(server, [len(text).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(text)
    server.recv(1)  # nothing is sent: this ends when the kernel has


if __name__ == "__main__":
    main()

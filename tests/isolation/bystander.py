"""What else is on a machine: programs that listen, and leave things lying around for everybody, for the attacks to find.

    bystander.py FOLDER FOLDER      the first for sockets that are connected to, the second for those that datagrams are sent to

Prints where all of it is, a line of JSON, and stays until its standard input ends. Standard library only.
"""

import ctypes
import json
import os
import socket
import sys
import tempfile
import threading

_KEY = (248, 250) if os.uname().machine == "x86_64" else (217, 219)


def answer(sock: socket.socket) -> None:
    while True:
        _, who = sock.recvfrom(64)
        sock.sendto(b"answer", who)


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    folders = [tempfile.mkdtemp(prefix="bystander-", dir=folder) for folder in sys.argv[1:]]
    for folder in folders:
        os.chmod(folder, 0o755)
    stream, packets, datagrams = f"{folders[0]}/stream", f"{folders[0]}/packets", f"{folders[1]}/datagrams"
    tcp = socket.create_server(("127.0.0.1", 0), backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    threading.Thread(target=answer, args=(udp,), daemon=True).start()
    name = os.path.basename(folders[0])
    listening = []
    for address, kind in (
        (stream, socket.SOCK_STREAM),
        (packets, socket.SOCK_SEQPACKET),
        (f"\0{name}", socket.SOCK_STREAM),
        (datagrams, socket.SOCK_DGRAM),
    ):
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(address)
        if kind != socket.SOCK_DGRAM:
            made.listen(64)
        if address.startswith("/"):
            os.chmod(address, 0o777)
        listening.append(made)
    shm = os.getpid()
    segment = libc.shmget(shm, 16, 0o1666)
    ctypes.memmove(libc.shmat(segment, None, 0), b"shared", 6)
    devshm = f"/dev/shm/{name}"
    with open(devshm, "w") as file:
        file.write("shared")
    os.chmod(devshm, 0o644)
    secret = ctypes.create_string_buffer(b"a bystander's own")
    found = {
        "tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "unix": stream, "packets": packets, "abstract": name,
        "datagrams": datagrams, "shm": shm, "devshm": devshm, "pid": os.getpid(), "address": ctypes.addressof(secret),
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    libc.shmctl(segment, 0, None)
    os.unlink(devshm)
    for path in (stream, packets, datagrams):
        os.unlink(path)
    for folder in folders:
        os.rmdir(folder)


if __name__ == "__main__":
    main()

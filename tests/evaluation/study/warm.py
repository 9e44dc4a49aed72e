"""A process that has imported all there is to import, and forks whole commands on demand: real ones, started at once.

python warm.py serve SOCKET              # the process
python warm.py run SOCKET ARGUMENTS ...  # as `python -m llmkd.train ARGUMENTS ...`: a study's launcher
"""

import array
import json
import os
import signal
import socket
import sys
import threading
import traceback


def ask(path: str, command: str, arguments: list[str], out: int, err: int) -> tuple[socket.socket, int]:
    """Have `train` or `compare` started in this folder and environment: a connection that ends with it, and its pid.

    The command dies when the connection is closed before it has ended.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    asked = json.dumps([command, arguments, os.getcwd(), dict(os.environ)]).encode()
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, err]))]
    connection.sendmsg([len(asked).to_bytes(4, "big")], files)
    connection.sendall(asked)
    return connection, int.from_bytes(receive(connection, 4), "big")


def exit_code(connection: socket.socket) -> int:
    """Wait for the end; 137 for a command that was killed."""
    said = receive(connection, 1)
    return said[0] if said else 137


def receive(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (part := connection.recv(count - len(found))):
        found += part
    return found


def serve(path: str) -> None:
    import llmkd.evaluation.study.compare
    import llmkd.evaluation.study.search
    import llmkd.job  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to ask for exit codes here
    while True:
        connection, _ = listener.accept()
        head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(8))
        files = array.array("i", ancillary[0][2])
        asked = json.loads(receive(connection, int.from_bytes(head, "big")))
        if os.fork() == 0:
            listener.close()
            work(connection, *files, *asked)
        connection.close()
        for file in files:
            os.close(file)


def work(
    connection: socket.socket, out: int, err: int, command: str, arguments: list[str], folder: str, environment: dict
) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    connection.sendall(os.getpid().to_bytes(4, "big"))
    threading.Thread(target=lambda: connection.recv(1) or os._exit(137), daemon=True).start()
    code = 70
    try:
        code = main(command, arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code]))
        os._exit(code)


def main(command: str, arguments: list[str]) -> int:
    if command == "train":
        from llmkd import train

        return train.main(arguments)
    import argparse

    from llmkd.evaluation.study import command as compare

    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_intermixed_args(arguments))


def run(path: str, arguments: list[str]) -> int:
    connection, process = ask(path, "train", arguments, 1, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    return exit_code(connection)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(run(sys.argv[2], sys.argv[3:]))

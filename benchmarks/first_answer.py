"""How long a fresh process takes from its first import to its first answer, and its peak memory; decision.py runs it.

Example:
    python3 benchmarks/first_answer.py models/all-MiniLM-L6-v2-router-finetuning-20261123T211000-save router
"""

import sys
import time

started = time.perf_counter()
folder, name = sys.argv[1:]
if name == "router":
    sys.path.insert(0, __file__.rpartition("benchmarks")[0])
    from router_model import Router

    Router.load(folder).score(["warm up"])
else:
    from transformers import pipeline

    pipeline("text-classification", model=folder, device="cpu", trust_remote_code=False)("warm up")
print(time.perf_counter() - started)
with open("/proc/self/status", encoding="utf-8") as status:  # ru_maxrss would start from the parent's
    print(int(status.read().split("VmHWM:")[1].split()[0]) * 1024 / 1e6)

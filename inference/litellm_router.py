"""Route inside LiteLLM's proxy, for those who run it already: a hook that scores a request and names its model.

Reads   a checkpoint: ROUTER_MODEL_SAVE_DIR (default: the newest in ./models), and its threshold or ROUTER_THRESHOLD
Writes  nothing; what was decided stands in x-router-... headers and in the request's metadata, for LiteLLM's own logs

Clients ask LiteLLM for `router` (the checkpoint's threshold) or `router-0.35` (that threshold); the hook makes that
`inferior` or `superior`, which litellm_config.yaml describes, and everything else is LiteLLM's: keys, budgets, other
providers, retries, fallbacks. The user's turns decide, never the system prompt; without any text of the user the
superior model answers. Where nothing but the routing is wanted, inference/serve_openai_api.py is faster.

Example, after `python3 -m pip install -r requirements/litellm.txt` into an environment of its own:
    litellm --config inference/litellm_config.yaml --host 127.0.0.1 --port 4000
"""

import asyncio
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dotenv import load_dotenv
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from router_data import SUPERIOR, InputError
from router_model import Router, newest_checkpoint, user_turns

ROUTER_MODEL = re.compile(r"router(?:-(0|1|0?\.\d+|1\.0+))?")
METADATA_KEY = "router_decision"


class RouterHook(CustomLogger):
    """Scores what is asked of `router`. LiteLLM calls its methods; other requests pass untouched."""

    def __init__(self, router: Router, threshold: float | None = None):
        """
        Args:
            router: the loaded checkpoint.
            threshold: superior from this probability on; None takes the checkpoint's.
        """
        super().__init__()
        self.router = router
        self.threshold = router.settings.threshold if threshold is None else threshold

    async def async_pre_call_hook(self, user_api_key_dict, cache, data: dict, call_type: str) -> dict:
        """The request with the model that the router chooses. Raises HTTPException 400 where there is nothing to judge.

        Args:
            data: the request's fields and what LiteLLM adds to them.
        """
        metadata_of(data).pop(METADATA_KEY, None)  # of a client's own making
        asked = ROUTER_MODEL.fullmatch(str(data.get("model")))
        if not asked:
            return data
        told = await self._decide(data.get("messages"), self.threshold if asked[1] is None else float(asked[1]))
        data["model"] = told["model"]
        metadata_of(data)[METADATA_KEY] = told
        return data

    async def async_post_call_response_headers_hook(self, data: dict, user_api_key_dict, response, **_) -> dict | None:
        """The decision as headers of the response, streams and errors included."""
        told = metadata_of(data).get(METADATA_KEY, {})
        return {f"x-router-{name}": str(value) for name, value in told.items()}

    async def _decide(self, messages: object, threshold: float) -> dict[str, str]:
        if not isinstance(messages, list):
            raise HTTPException(400, {"error": "the model `router` reads `messages`; ask for `inferior` or `superior`"})
        if all(isinstance(message, dict) and message.get("role") not in (None, "user") for message in messages):
            return {"model": "superior"}
        try:
            turns = user_turns(messages)
        except InputError as error:
            raise HTTPException(400, {"error": f"messages: {error}"}) from error
        if not any(turn.strip() for turn in turns):
            return {"model": "superior"}
        # in a thread: scoring holds no lock of Python for most of its time, so other requests go on
        [decision] = await asyncio.to_thread(self.router.decide, [messages], threshold)
        return {
            "model": "superior" if decision.router_label == SUPERIOR else "inferior",
            "probability": f"{decision.router_score:.6f}",
            "threshold": f"{threshold:g}",
            "truncated": str(decision.truncated).lower(),
        }


def metadata_of(data: dict) -> dict:
    """LiteLLM's own metadata of a request: it reaches its logs and never the model."""
    name = "litellm_metadata" if "litellm_metadata" in data else "metadata"
    if not isinstance(data.get(name), dict):
        data[name] = {}
    return data[name]


def load_hook() -> RouterHook:
    """The hook with the checkpoint that the environment names.

    Raises:
        InputError: there is none, or the threshold is no probability.
    """
    load_dotenv(ROOT / ".env")
    text = os.environ.get("ROUTER_THRESHOLD", "").strip()
    try:
        threshold = float(text) if text else None
    except ValueError:
        threshold = -1.0
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"ROUTER_THRESHOLD {text} is not between 0 and 1")
    return RouterHook(Router.load(os.environ.get("ROUTER_MODEL_SAVE_DIR") or newest_checkpoint()), threshold)


try:
    hook = load_hook()  # LiteLLM takes an object by name, when it reads its configuration
except InputError as fault:
    sys.exit(f"error: {fault}")

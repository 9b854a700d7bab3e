"""Route inside LiteLLM's proxy: a hook that scores a request and names its model.

Reads   a checkpoint: ROUTER_MODEL_SAVE_DIR (default: the newest in ./models), and its threshold or ROUTER_THRESHOLD
Writes  nothing; what was decided stands in x-router-... headers and in the request's metadata, for LiteLLM's own logs

If you already run LiteLLM's proxy, add the router to it. Clients ask for `router` (the checkpoint's threshold) or
`router-0.35` (that threshold), by chat completions, the Responses API or Anthropic's Messages; the hook makes that
`inferior` or `superior`, which litellm_config.yaml describes, and everything else is LiteLLM's: keys, budgets, other
providers, retries, fallbacks. The user's own words decide, never the system prompt, tools' results or what an agent
adds; without any the superior model answers, and a conversation that needed it once stays there. Without LiteLLM,
inference/serve_openai_api.py is faster.

Example, after `python3 -m pip install -r requirements/litellm.txt` into an environment of its own:
    litellm --config inference/litellm_config.yaml --host 127.0.0.1 --port 4000
"""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dotenv import load_dotenv
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

from inference.sessions import Sessions, decision_headers
from request_text import messages_in
from router_data import TIER_NAMES, InputError
from router_model import Router, newest_checkpoint, parse_router_model, scorable_turns

METADATA_KEY = "router_decision"


class RouterHook(CustomLogger):
    """Scores what is asked of `router`. LiteLLM calls its methods; other requests pass untouched."""

    def __init__(self, router: Router, threshold: float | None = None) -> None:
        """Take a loaded checkpoint, and the threshold of the model `router` (default: the checkpoint's)."""
        super().__init__()
        self.threshold = router.settings.threshold if threshold is None else threshold
        self._sessions = Sessions(router)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """The request with the model that the router chooses.

        Args:
            user_api_key_dict: LiteLLM's; not used, as `cache` and `call_type`.
            cache: LiteLLM's.
            data: the request's fields and what LiteLLM adds to them.
            call_type: LiteLLM's.

        Raises:
            HTTPException: with status 400, where there is no conversation to judge.
        """
        metadata_of(data).pop(METADATA_KEY, None)  # a client could send one
        is_router, threshold = parse_router_model(str(data.get("model")))
        if not is_router:
            return data
        decision = await self._decide(data, self.threshold if threshold is None else threshold)
        data["model"] = decision["model"]
        metadata_of(data)[METADATA_KEY] = decision
        return data

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """The decision as headers of the response, streams and errors included."""
        decision = metadata_of(data).get(METADATA_KEY, {})
        return {f"x-router-{name}": str(value) for name, value in decision.items()}

    async def _decide(self, data: dict[str, Any], threshold: float) -> dict[str, str]:
        messages = messages_in(data)
        if not isinstance(messages, list):
            text = "the model `router` reads `messages` or `input`; ask for `inferior` or `superior`"
            raise HTTPException(400, {"error": text})
        try:
            turns = scorable_turns(messages)
        except InputError as error:
            raise HTTPException(400, {"error": f"messages: {error}"}) from error
        if turns is None:
            return {"model": "superior"}
        decision = (await self._sessions.route(turns, threshold)).decision
        return {"model": TIER_NAMES[decision.router_label], **decision_headers(decision)}


def metadata_of(data: dict[str, Any]) -> dict[str, Any]:
    """LiteLLM's own metadata of a request: it reaches its logs and never the model."""
    name = "litellm_metadata" if "litellm_metadata" in data else "metadata"
    if not isinstance(data.get(name), dict):
        data[name] = {}
    return data[name]


def load_hook() -> RouterHook:
    """The hook with the checkpoint that the environment names.

    Raises:
        InputError: there is none, or the threshold is not between 0 and 1.
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
except InputError as error:
    sys.exit(f"error: {error}")

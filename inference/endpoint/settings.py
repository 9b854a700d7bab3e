"""What the endpoint is told beside the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.endpoint.access import Access
from inference.endpoint.tracing import Tracing
from inference.endpoint.upstreams import Upstream


@dataclass(frozen=True)
class Settings:
    """The program's flags and variables say what each means."""

    inferior: Upstream
    superior: Upstream
    threshold: float | None = None
    sticky: bool = True
    max_in_flight: int = 1000
    timeout: float = 300.0
    retries: int = 1
    fall_back_to_inferior: bool = False
    other_paths: str | None = None  # the model whose upstream gets the paths that are not routed
    aliases: Mapping[str, str] = field(default_factory=dict)
    forward_headers: frozenset[str] = frozenset()
    access: Access = Access()
    decision_log: Path | None = None
    log_prompts: bool = False
    shadow_share: float = 0.0
    shadow_max_requests: int = 1000
    tracing: Tracing | None = None

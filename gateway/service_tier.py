"""OpenAI's ``service_tier`` and the queue's classes, in both directions."""

from __future__ import annotations

from schemas.errors import HeadraceError
from schemas.job import Priority

_CLASSES: dict[str, Priority] = {"priority": "interactive", "default": "standard", "flex": "batch"}
_TIERS: dict[Priority, str] = {priority: tier for tier, priority in _CLASSES.items()}


def priority_of(service_tier: str | None, default: Priority) -> Priority:
    """``default``: of a request that leaves it open (``gateway.default_class``). Raises ``HeadraceError``."""
    if service_tier in (None, "auto"):
        return default
    if service_tier in _CLASSES:
        return _CLASSES[service_tier]
    tiers = "'priority', 'default', 'flex' or 'auto'"
    if service_tier in ("scale", "fast"):
        raise HeadraceError(
            "unsupported_parameter",
            f"service_tier: {service_tier!r} is not served; use {tiers}.",
            param="service_tier",
        )
    raise HeadraceError("invalid_value", f"service_tier: say {tiers}, or leave it out.", param="service_tier")


def tier_of(priority: Priority) -> str:
    return _TIERS[priority]

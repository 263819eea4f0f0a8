"""What operators and clients ask about the gateway itself: health, readiness, metrics, models."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from broker.metrics import exposition
from gateway.api.front import Front
from gateway.router import Offer
from gateway.siblings import TEXT_FORMAT, metrics_of_all
from schemas.errors import HeadraceError


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's model object; below ``owned_by``, what such servers add, and ours. ``root``: the model that
    would answer, ``parent``: what an alias stands for; of ``auto`` only the name is known before a request.
    ``token`` names the model in subjects."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "headrace"
    root: str | None = None
    parent: str | None = None
    token: str | msgspec.UnsetType = msgspec.UNSET
    revision: str | msgspec.UnsetType = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    workers: int | msgspec.UnsetType = msgspec.UNSET
    slots: int | msgspec.UnsetType = msgspec.UNSET
    running: int | msgspec.UnsetType = msgspec.UNSET
    waiting: int | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]
    object: str = "list"


def healthz() -> Response:
    """The process lives and its event loop turns."""
    return PlainTextResponse("ok\n")


def readyz(front: Front) -> Response:
    """200 only if a chat would be answered now."""
    ready, reason = front.ready()
    headers = {} if ready else {"retry-after": "2"}
    return PlainTextResponse(f"{reason or 'ready'}\n", status_code=200 if ready else 503, headers=headers)


async def metrics(front: Front, request: Request) -> Response:
    """Of all processes that share the port, whichever was asked."""
    if front.place is not None:
        return Response(await metrics_of_all(front.place), headers={"content-type": TEXT_FORMAT})
    body, content_type = exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})


async def models(front: Front, request: Request) -> Response:
    listed = ModelList([_model(offer) for offer in front.pipeline.offers()])
    return Response(msgspec.json.encode(listed), media_type="application/json")


async def model(front: Front, request: Request, name: str) -> Response:
    """Raises ``model_not_found``."""
    for offer in front.pipeline.offers():
        if offer.name == name:
            return Response(msgspec.json.encode(_model(offer)), media_type="application/json")
    raise HeadraceError(
        "model_not_found", "No worker serves this model; /v1/models lists those served.", param="model"
    )


def _model(offer: Offer) -> Model:
    card = offer.card
    if card is None:
        return Model(id=offer.name, created=0, parent=offer.parent)
    return Model(
        id=offer.name,
        created=card.created_unix_ms // 1000,
        root=card.name,
        parent=offer.parent,
        token=card.token,
        revision=card.revision,
        max_model_len=card.max_model_len,
        workers=card.workers,
        slots=card.slots,
        running=card.running,
        waiting=card.waiting,
    )

"""The Python client: streams that outlive connections and gateways. Needs ``websockets`` and nothing else
of Headrace, so that it can be used, or copied, without the server."""

from gateway.client.client import Answer, Client
from gateway.client.errors import ResponseError

__all__ = ["Answer", "Client", "ResponseError"]

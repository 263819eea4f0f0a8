"""Every configuration key, in one place: one TOML table (or ``HEADRACE_<SECTION>__<KEY>``) a section.

Reading files and environment is ``broker/settings.py``; commented examples are in ``deploy/examples``.
Units are in the names. A key that is not here is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.quota import Limit

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: a free one
Origin = Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)\Z")]  # as browsers write it
Network = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f.:]+(/\d{1,3})?\Z")]  # an address, or addresses as CIDR
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Fraction = Annotated[float, Meta(ge=0, le=1)]
AUTO = "auto"  # the model that the routing policy chooses
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Nats(_Section, frozen=True):
    """``url``: one or several, separated by commas. ``replicas`` 3 needs a cluster of three."""

    url: str = "nats://127.0.0.1:4222"
    credentials: str = ""  # path of a .creds file
    user: str = ""
    password: str = ""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    jobs_max_age_s: Seconds = 24 * 3600
    jobs_max_messages: Positive = 1_000_000
    jobs_max_bytes: Positive = 8 << 30
    replies_max_age_s: Seconds = 2 * 3600
    replies_max_bytes: Positive = 16 << 30
    ack_wait_s: Seconds = 15


class Redis(_Section, frozen=True):
    url: str = "redis://127.0.0.1:6379/0"
    timeout_s: Seconds = 0.5  # Redis is a cache: slower than this and the request goes on without it


class Security(_Section, frozen=True):
    """``secret`` keys every HMAC (session tokens, cache salts): the same on all gateways, at least 16
    characters. Empty: a random one for this process, which only a single gateway can live with."""

    secret: Annotated[str, Meta(pattern=r"^$|^.{16,}$")] = ""


class Gateway(_Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8080
    processes: Annotated[int, Meta(ge=1, le=256)] = 1  # that share the port; the limits here are of each
    allow_unauthenticated: bool = False  # must be true to listen beyond loopback without auth
    allowed_origins: tuple[Origin, ...] = ()  # pages of elsewhere that may use this gateway; "*": any
    default_model: str = ""  # empty: the only one there is, or the first by name
    default_max_tokens: Positive = 512
    default_class: Literal["interactive", "standard", "batch"] = "interactive"  # service_tier "auto"
    max_message_bytes: Positive = 1 << 20  # one request body or WebSocket message; larger: coded error
    max_frame_bytes: Positive = 16 << 20  # WebSocket protocol limit; larger: close 1009
    max_connections: Positive = 20_000
    max_responses_per_connection: Positive = 32
    max_responses: Positive = 10_000  # in flight on this gateway; beyond: queue_full
    deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 300
    disconnect_grace_s: Annotated[float, Meta(ge=0)] = 30
    drain_s: Annotated[float, Meta(ge=0)] = 20
    ping_interval_s: Seconds = 10
    ping_timeout_s: Seconds = 30
    tls_cert: str = ""  # PEM files; empty: no TLS
    tls_key: str = ""
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For and -Proto are believed
    max_connections_per_address: Annotated[int, Meta(ge=0)] = 1000  # 0: any; loopback has no limit of its own
    max_connections_per_tenant: Annotated[int, Meta(ge=0)] = 0  # 0: any
    max_head_bytes: Annotated[int, Meta(ge=1024)] = 32 << 10  # request line and headers
    head_timeout_s: Seconds = 10  # for a request's line and headers to be here
    body_timeout_s: Seconds = 60
    keep_alive_s: Seconds = 75  # an HTTP connection without a request; longer than a load balancer's
    idle_s: Seconds = 3600  # a WebSocket without a message either way; pongs do not count
    slow_reader_s: Seconds = 15  # a client takes less than 16 KiB in this time while more waits for it
    # how a model writes tool calls, by its name, where its chat template does not tell
    tool_formats: dict[str, Literal["hermes", "llama", "mistral", "pythonic"]] = {}
    conversation_rounds: Positive = 10
    conversation_ttl_s: Seconds = 3600


class Auth(_Section, frozen=True):
    """Who may use a gateway: ``methods`` empty, everyone who reaches it. ``jwt_keys``: the https address of a
    JWKS, or a file: a JWKS, or a public key in PEM."""

    methods: tuple[Literal["keys", "jwt"], ...] = ()
    jwt_keys: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    jwt_tenant_claim: str = "tenant"
    jwt_quota_claim: str = "quota"
    jwt_leeway_s: Annotated[float, Meta(ge=0, le=300)] = 30
    max_token_s: Annotated[int, Meta(ge=1, le=24 * 3600)] = 3600  # of POST /v1/tokens
    failures_per_minute: Positive = 30  # of one address; beyond: too_many_attempts
    open_metrics: bool = False  # /metrics to everyone, not only to this machine


class Candidate(_Section, frozen=True):
    """A model for ``model: "auto"``, and up to where it is taken. None: no limit."""

    model: ModelName  # a served name
    max_queue_ms: Annotated[float, Meta(ge=0)] | None = None
    max_prompt_tokens: Positive | None = None  # estimated by characters
    max_rtt_ms: Annotated[float, Meta(gt=0)] | None = None


class Routing(_Section, frozen=True):
    """Which model answers; ``gateway/ROUTING.md``. ``aliases``: another name to a served one, or to "auto".
    ``auto``: the policy, in order of preference. ``fallback``: a served name to those that stand in for it
    while no worker serves it."""

    aliases: dict[ModelName, ModelName] = {}
    auto: tuple[Candidate, ...] = ()
    fallback: dict[ModelName, tuple[ModelName, ...]] = {}


class Limits(_Section, frozen=True):
    """What a tenant may use where its key or token says nothing (0: no limit), its share of a model's slots,
    and what may wait for a model in each class."""

    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    concurrent_responses: Limit = 0
    min_share: Positive = 2  # slots of a model that any tenant may fill ahead of those above their share
    max_queued_interactive: Positive = 10_000
    max_queued_standard: Positive = 10_000
    max_queued_batch: Positive = 50_000
    lease_s: Annotated[float, Meta(ge=1)] = 30  # what a dead gateway held counts for so long


class Cache(_Section, frozen=True):
    """Answers kept in Redis for identical requests of the same tenant. Sizes are of token ids, as stored."""

    enabled: bool = True
    join: bool = True  # identical requests in flight share one generation
    ttl_s: Seconds = 3600
    max_entry_bytes: Positive = 64 << 10  # a longer answer is not kept
    max_tenant_bytes: Positive = 64 << 20  # beyond: the tenant's oldest answers go


class Worker(_Section, frozen=True):
    engine: Literal["vllm", "sim"] = "vllm"
    model: str = "smollm2"  # hub id, local folder, or the name of a model made by `headrace model fetch`
    served_name: str = ""  # what clients call it; empty: the model's own name
    slots: Annotated[int, Meta(ge=0)] = 0  # 0: the engine's own max_num_seqs
    reserved_slots: Annotated[int, Meta(ge=0)] = 0  # of them, for interactive jobs within their share only
    host: str = "127.0.0.1"  # health and metrics
    port: Port = 8081
    presence_interval_s: Annotated[float, Meta(gt=0, le=15)] = 2  # a card is swept when 60 s old
    drain_s: Annotated[float, Meta(ge=0)] = 20
    confirm_interval_s: Seconds = 0.5  # one token message a response in this time asks for its ack
    hang_timeout_s: Seconds = 30  # an engine with work and no output, or the whole process: it hangs
    canary_interval_s: Seconds = 60  # idle for so long: one token is generated to see that it lives


class Sim(_Section, frozen=True):
    """The simulated engine: times of one request, shared batch, faults at start. It answers in word salad;
    but where the last message of a prompt has ``<|say|>`` in it, with what stands behind that, to the
    letter."""

    name: str = "headrace-sim"
    slots: Positive = 64
    max_model_len: Positive = 32_768
    prefill_us_per_token: Annotated[float, Meta(ge=0)] = 50
    prefill_base_ms: Annotated[float, Meta(ge=0)] = 5
    inter_token_ms: Annotated[float, Meta(ge=0)] = 20
    mean_output_tokens: Annotated[int, Meta(ge=0)] = 120  # 0: only max_tokens ends a response
    split_characters: bool = True  # one token in 30 begins a character of several, shown when it is whole
    start_delay_s: Annotated[float, Meta(ge=0)] = 0
    start_fault: Literal["", "crash", "hang"] = ""
    crash_after_tokens: Annotated[int, Meta(ge=0)] = 0  # 0: never
    hang_after_tokens: Annotated[int, Meta(ge=0)] = 0
    crash_on_token_id: Annotated[int, Meta(ge=0)] = 0  # a prompt that holds it crashes the engine; 0: none


class Logging(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    responses: bool = True  # one line for each response at its end, on its gateway and on its workers
    loop_lag_ms: Annotated[float, Meta(ge=0)] = 250  # an event loop so late is a warning; 0: never


class Tracing(_Section, frozen=True):
    """``endpoint``: of a collector that takes OTLP over HTTP, as ``http://collector:4318``; empty: off, which
    costs nothing. What else there is to an exporter (headers, certificates, timeout) is set by
    OpenTelemetry's own variables. ``sample_ratio``: of requests that come without a traceparent; one that has
    it says itself."""

    endpoint: Annotated[str, Meta(pattern=r"^$|^https?://[^\s/]+\S*\Z")] = ""
    sample_ratio: Fraction = 1.0


class Config(_Section, frozen=True):
    """``vllm`` takes any field of vLLM's ``AsyncEngineArgs``; the worker checks the names at start."""

    nats: Nats = Nats()
    redis: Redis = Redis()
    security: Security = Security()
    gateway: Gateway = Gateway()
    auth: Auth = Auth()
    routing: Routing = Routing()
    limits: Limits = Limits()
    cache: Cache = Cache()
    worker: Worker = Worker()
    sim: Sim = Sim()
    vllm: dict[str, Any] = {}
    logging: Logging = Logging()
    tracing: Tracing = Tracing()

"""What waits, why, and how the workers and the broker do."""

from deploy.observe.panels import OF, Dashboard, Panel, Query, peaks, rate, rates

QUEUE = Dashboard(
    "headrace-queue",
    "Headrace: queue and workers",
    "What waits, why, and how the workers and the broker do.",
    (
        Panel(
            "Jobs waiting",
            "By queue; over: above a tenant's share.",
            "none",
            (peaks("headrace_queue_depth", "model, priority, lane"),),
            stacked=True,
        ),
        Panel(
            "Oldest job",
            "Age of the oldest that waits.",
            "s",
            (peaks("headrace_queue_oldest_age_seconds", "model, priority, lane"),),
            red_from=30,
        ),
        Panel(
            "Wait of a job that came now",
            "Gateways' estimate, while anything waits.",
            "s",
            (peaks("headrace_gateway_queue_estimate_seconds", "model, priority, lane"),),
        ),
        Panel(
            "Jobs pulled",
            "Begun by workers, redeliveries too.",
            "ops",
            (rates("headrace_worker_queue_wait_seconds_count", "model"),),
        ),
        Panel(
            "Slots in use",
            "Of each worker, 1: full.",
            "percentunit",
            (
                Query(
                    f"headrace_worker_slots_used{{{OF}}} / headrace_worker_slots{{{OF}}}",
                    "{{model}} {{instance}}",
                ),
            ),
            width=8,
        ),
        Panel(
            "KV cache",
            "In use, of each worker.",
            "percentunit",
            (Query(f"headrace_worker_kv_cache_usage_ratio{{{OF}}}", "{{model}} {{instance}}"),),
            width=8,
            red_from=0.95,
        ),
        Panel(
            "Batch",
            "Tokens an engine step.",
            "none",
            (
                Query(
                    f"{rate('headrace_worker_completion_tokens_total', 'model, instance')}"
                    f" / {rate('headrace_worker_engine_steps_total', 'model, instance')}",
                    "{{model}} {{instance}}",
                ),
            ),
            width=8,
        ),
        Panel(
            "Tokens made",
            "By worker.",
            "ops",
            (rates("headrace_worker_completion_tokens_total", "model, instance"),),
            stacked=True,
        ),
        Panel(
            "Jobs ended by outcome",
            "handed_off: a drain; fenced_off: the lease went to another worker.",
            "ops",
            (rates("headrace_worker_requests_total", "outcome"),),
            stacked=True,
        ),
        Panel(
            "Workers alive",
            "As gateways see them.",
            "none",
            (peaks("headrace_workers_alive", "model"),),
            width=8,
        ),
        Panel(
            "Restarts",
            "Of engine processes by their guardians, in 15 minutes.",
            "none",
            (Query("increase(headrace_worker_restarts_total[15m])", "{{instance}}"),),
            width=8,
            red_from=3,
        ),
        Panel(
            "Redelivered and taken over",
            "Jobs that had been pulled before, and responses that went on with another worker.",
            "ops",
            (
                rates("headrace_worker_jobs_redelivered_total", "model", legend="{{model}} redelivered"),
                rates("headrace_gateway_takeovers_total", "model", legend="{{model}} taken over"),
            ),
            width=8,
        ),
        Panel(
            "Streams",
            "Of their limit; JOBS and REPLIES drop their oldest at 1.",
            "percentunit",
            (peaks("stream:headrace_stream_filled:ratio", "stream", where=""),),
            red_from=0.9,
        ),
        Panel(
            "Streams reach back",
            "Age of the oldest message.",
            "s",
            (peaks("headrace_stream_oldest_age_seconds", "stream", where=""),),
        ),
        Panel(
            "Dead letters",
            "Jobs buried, by why.",
            "none",
            (
                Query(
                    f"sum by (model, code) (headrace_worker_dead_letters_total{{{OF}}})",
                    "{{model}} {{code}}",
                ),
            ),
            width=8,
        ),
        Panel(
            "Broker connections",
            "1: up, of each process.",
            "none",
            (Query("headrace_broker_connected", "{{job}} {{instance}}"),),
            width=8,
        ),
        Panel(
            "Tokens on their way",
            "Not published yet, and not known to be stored.",
            "none",
            (
                Query(f"sum by (model) (headrace_worker_unsent_tokens{{{OF}}})", "{{model}} unsent"),
                Query(
                    f"sum by (model) (headrace_worker_unconfirmed_tokens{{{OF}}})", "{{model}} unconfirmed"
                ),
            ),
            width=8,
        ),
    ),
)

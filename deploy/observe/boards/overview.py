"""Is it well, and if not, where to look."""

from deploy.observe.panels import OF, RATE, Dashboard, Panel, Query, quantiles, rates, stat

OVERVIEW = Dashboard(
    "headrace-overview",
    "Headrace: overview",
    "Is it well, and if not, where to look.",
    (
        stat("Gateways ready", "That would answer a chat now.", "none", "sum(headrace_gateway_ready)"),
        stat("Workers ready", "That pull jobs now.", "none", "sum(headrace_worker_ready)"),
        stat(
            "Requests",
            "Ended, of any outcome.",
            "reqps",
            f"sum(rate(headrace_gateway_requests_total{{{OF}}}{RATE}))",
        ),
        stat(
            "Tokens",
            "Made by workers.",
            "ops",
            f"sum(rate(headrace_worker_completion_tokens_total{{{OF}}}{RATE}))",
        ),
        stat(
            "Jobs waiting",
            "In all queues.",
            "none",
            f"sum(max by (model, priority, lane) (headrace_queue_depth{{{OF}}}))",
        ),
        stat(
            "Dead letters",
            "That nobody has redriven or dropped yet; gone after 7 days.",
            "none",
            'max(headrace_stream_messages{stream="DEAD"})',
            red_from=1,
        ),
        Panel(
            "Time to first token",
            "What a user waits, from the request's arrival at the gateway.",
            "s",
            quantiles("headrace_gateway_time_to_first_token_seconds"),
            red_from=5,
        ),
        Panel(
            "Between tokens",
            "As tokens come from the broker: a stall of a stream stands here.",
            "s",
            quantiles("headrace_gateway_inter_token_latency_seconds"),
            red_from=1,
        ),
        Panel(
            "Responses by outcome",
            "refused: by limits or the request's own fault.",
            "reqps",
            (rates("headrace_gateway_requests_total", "outcome"),),
            stacked=True,
        ),
        Panel(
            "Errors by code",
            "Told to clients, or written to logs; schemas/errors.py says what each means.",
            "ops",
            (rates("headrace_errors_total", "code", where=""),),
            stacked=True,
        ),
        Panel(
            "Slots in use",
            "Against all there are.",
            "none",
            (
                Query(f"sum by (model) (headrace_worker_slots_used{{{OF}}})", "{{model}} used"),
                Query(f"sum by (model) (headrace_worker_slots{{{OF}}})", "{{model}} slots"),
            ),
        ),
        Panel(
            "Alerts firing",
            "By name: deploy/RUNBOOK.md has an entry for each.",
            "none",
            (
                Query(
                    'sum by (alertname) (ALERTS{alertname=~"Headrace.*", alertstate="firing"})',
                    "{{alertname}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

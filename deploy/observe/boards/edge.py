"""Clients and gateways."""

from deploy.observe.panels import OF, RATE, Dashboard, Panel, Query, quantiles, rate, rates

EDGE = Dashboard(
    "headrace-edge",
    "Headrace: edge",
    "Clients and gateways: connections, streams, refusals, readers that lag, the cache server.",
    (
        Panel(
            "Connections",
            "Of clients: WebSockets, and all.",
            "none",
            (
                Query("sum(headrace_gateway_connections)", "WebSockets"),
                Query("sum(headrace_gateway_tcp_connections)", "all"),
            ),
            width=8,
        ),
        Panel(
            "Streams",
            "Responses being streamed.",
            "none",
            (Query("sum by (api, transport) (headrace_gateway_streams)", "{{api}} {{transport}}"),),
            width=8,
            stacked=True,
        ),
        Panel(
            "In flight",
            "Accepted responses: with a worker, and waiting for one.",
            "none",
            (
                Query(f"sum(headrace_gateway_requests_running{{{OF}}})", "running"),
                Query(f"sum(headrace_gateway_requests_waiting{{{OF}}})", "waiting"),
            ),
            width=8,
            stacked=True,
        ),
        Panel(
            "Refused by limits",
            "requests, tokens, concurrent: of a tenant; queue, deadline: too much waits; storage: full.",
            "reqps",
            (rates("headrace_gateway_admission_refusals_total", "limit", where=""),),
            stacked=True,
        ),
        Panel(
            "Admitted by lane",
            "over: above the tenant's share.",
            "reqps",
            (rates("headrace_gateway_admitted_total", "model, lane"),),
            stacked=True,
        ),
        Panel(
            "Sent",
            "To clients.",
            "Bps",
            (rates("headrace_gateway_sent_bytes_total", "transport", where=""),),
            width=8,
        ),
        Panel(
            "Tokens an update",
            "Above 1: merged, because readers or the broker lag.",
            "none",
            (
                Query(
                    f"{rate('headrace_gateway_update_tokens_total', 'instance', where='')}"
                    f" / {rate('headrace_gateway_updates_total', 'instance', where='')}",
                    "{{instance}}",
                ),
            ),
            width=8,
        ),
        Panel(
            "Slow readers",
            "That leave more unread than the kernel takes; and cut off, a second.",
            "none",
            (
                Query("sum(headrace_gateway_slow_readers)", "now"),
                Query(f"sum(rate(headrace_gateway_slow_readers_closed_total{RATE}))", "cut off a second"),
            ),
            width=8,
        ),
        Panel(
            "Resumes",
            "Streams that clients took up again.",
            "ops",
            (Query(f"sum(rate(headrace_gateway_resumes_total{RATE}))", "resumes"),),
            width=8,
        ),
        Panel(
            "Redis",
            "A PING; and whether gateways do without it.",
            "s",
            quantiles("headrace_redis_round_trip_seconds", by="job", where=""),
            width=8,
        ),
        Panel(
            "Redis away",
            "Gateways that work without it, and failed commands a second.",
            "none",
            (
                Query("sum(headrace_gateway_redis_degraded)", "gateways without"),
                Query(f"sum(rate(headrace_redis_errors_total{RATE}))", "errors a second"),
            ),
            width=8,
            red_from=1,
        ),
        Panel(
            "CPU",
            "Cores used, of each process.",
            "none",
            (Query(f'rate(process_cpu_seconds_total{{job=~"headrace-.*"}}{RATE})', "{{job}} {{instance}}"),),
            width=8,
        ),
        Panel(
            "Memory",
            "Resident, of each process.",
            "bytes",
            (Query('process_resident_memory_bytes{job=~"headrace-.*"}', "{{job}} {{instance}}"),),
            width=8,
        ),
        Panel(
            "Log lines",
            "Warnings and worse.",
            "ops",
            (rates("headrace_log_records_total", "job, level", where='level=~"warning|error|critical"'),),
            width=8,
        ),
    ),
)

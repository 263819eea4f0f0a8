"""Where a response's time goes."""

from deploy.observe.panels import OF, Dashboard, Panel, Query, quantiles, rate

LATENCY = Dashboard(
    "headrace-latency",
    "Headrace: latency by part",
    "Where a response's time goes: edge, queue, prefill, decode, reconnect, transport.",
    (
        Panel(
            "Where the time goes, mean",
            "Of a response, by part; together they are the whole.",
            "s",
            (
                Query(
                    f"{rate('headrace_gateway_stage_seconds_sum', 'stage')}"
                    f" / on () group_left () {rate('headrace_gateway_end_to_end_latency_seconds_count')}",
                    "{{stage}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Whole response",
            "Request to terminal event.",
            "s",
            quantiles("headrace_gateway_end_to_end_latency_seconds"),
        ),
        *(
            Panel(
                f"Part: {stage}",
                tells,
                "s",
                quantiles("headrace_gateway_stage_seconds", where=f'{OF}, stage="{stage}"'),
                width=8,
            )
            for stage, tells in (
                ("edge", "Parsing, templates, encoding, admission: the gateway, until the job is sent."),
                ("queue", "Stored to taken up by an engine: workers are busy, or too few."),
                ("prefill", "Taken up to first token stored."),
                ("decode", "First token to the end."),
                ("reconnect", "A worker was lost, and another had not gone on yet."),
                ("transport", "What is left: the job on its way to the store, the end on its way back."),
            )
        ),
        Panel(
            "Worker: job pulled to first token",
            "Without the queue and the edge.",
            "s",
            quantiles("headrace_worker_time_to_first_token_seconds"),
        ),
        Panel(
            "Worker: between tokens",
            "As they are published; against the gateways' own figure the broker and they.",
            "s",
            quantiles("headrace_worker_inter_token_latency_seconds"),
        ),
        Panel(
            "Broker round trip",
            "A question to JetStream and its answer.",
            "s",
            quantiles("headrace_broker_round_trip_seconds", by="job", where=""),
            width=8,
            red_from=0.1,
        ),
        Panel(
            "Tokens to their ack",
            "What the broker takes to store them.",
            "s",
            quantiles("headrace_worker_tokens_ack_seconds", by="job", where=""),
            width=8,
        ),
        Panel(
            "Event loop lag",
            "How late a process runs what is due: all of its streams wait for it.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, "
                    f"{rate('headrace_event_loop_lag_seconds_bucket', 'job, instance, le', where='')})",
                    "{{job}} {{instance}} p99",
                ),
            ),
            width=8,
            red_from=0.1,
        ),
    ),
)

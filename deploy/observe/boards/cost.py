"""What the engines work for, what caches save them, and what is wasted."""

from deploy.observe.panels import OF, Dashboard, Panel, Query, increase, rate, rates, stat

SHARED = f'{OF}, result=~"hit|joined"'

COST = Dashboard(
    "headrace-cost",
    "Headrace: cost",
    "What the engines work for, what caches save them, and what is wasted.",
    (
        stat(
            "Tokens made",
            "In the time shown.",
            "short",
            increase("headrace_worker_completion_tokens_total"),
        ),
        stat(
            "Prompt tokens",
            "Given to engines in the time shown.",
            "short",
            increase("headrace_worker_prompt_tokens_total"),
        ),
        stat(
            "Saved: completion",
            "By stored and shared answers.",
            "short",
            increase("headrace_gateway_saved_tokens_total", where=f'{OF}, kind="completion"'),
        ),
        stat(
            "Saved: prompt",
            "By stored and shared answers.",
            "short",
            increase("headrace_gateway_saved_tokens_total", where=f'{OF}, kind="prompt"'),
        ),
        stat(
            "Read by nobody",
            "Of the tokens made.",
            "percentunit",
            f"{increase('headrace_gateway_tokens_unread_total')}"
            f" / {increase('headrace_worker_completion_tokens_total')}",
            red_from=0.2,
        ),
        stat(
            "Requests without an engine",
            "Answered by the cache, or by another's response.",
            "percentunit",
            f"{increase('headrace_gateway_cache_lookups_total', SHARED)}"
            f" / {increase('headrace_gateway_cache_lookups_total')}",
        ),
        Panel(
            "Tokens to and from clients",
            "Shared answers included.",
            "ops",
            (
                rates("headrace_gateway_prompt_tokens_total", "model", legend="{{model}} in"),
                rates("headrace_gateway_completion_tokens_total", "model", legend="{{model}} out"),
            ),
        ),
        Panel(
            "Tokens that engines work for",
            "Prompts without what the prefix cache held, and completions.",
            "ops",
            (
                Query(
                    f"{rate('headrace_worker_prompt_tokens_total', 'model')}"
                    f" - {rate('headrace_worker_cached_prompt_tokens_total', 'model')}",
                    "{{model}} prefill",
                ),
                rates("headrace_worker_completion_tokens_total", "model", legend="{{model}} decode"),
            ),
            stacked=True,
        ),
        Panel(
            "Saved by shared answers",
            "cache: stored; joined: an identical one in flight.",
            "ops",
            (rates("headrace_gateway_saved_tokens_total", "how, kind"),),
            stacked=True,
        ),
        Panel(
            "Prefix cache",
            "Of the prompt tokens, what the engines' caches held.",
            "percentunit",
            (
                Query(
                    f"{rate('headrace_worker_cached_prompt_tokens_total', 'model')}"
                    f" / {rate('headrace_worker_prompt_tokens_total', 'model')}",
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            "Answer cache",
            "Look-ups of requests that may share an answer.",
            "ops",
            (rates("headrace_gateway_cache_lookups_total", "result"),),
            width=8,
            stacked=True,
        ),
        Panel(
            "Wasted",
            "Read by nobody; and fed to an engine a second time, after a takeover.",
            "ops",
            (
                rates("headrace_gateway_tokens_unread_total", "model", legend="{{model}} unread"),
                rates("headrace_worker_continued_tokens_total", "model", legend="{{model}} continued"),
            ),
            width=8,
        ),
        Panel(
            "Tokens a slot and second",
            "Of the slots there are: what a machine is used for.",
            "none",
            (
                Query(
                    f"{rate('headrace_worker_completion_tokens_total', 'model')}"
                    f" / sum by (model) (headrace_worker_slots{{{OF}}})",
                    "{{model}}",
                ),
            ),
            width=8,
        ),
    ),
)

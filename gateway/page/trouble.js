// What went wrong, in the reader's words: what happened, what to do, and whether asking again makes sense.
// The codes are those of gateway/PROTOCOL.md; of one not listed here the server's own message is shown.

const again = (what, hint = "Ask again in a moment.") => ({ what, hint, retry: true })
const never = (what, hint) => ({ what, hint, retry: false })

const KNOWN = {
  auth_unavailable: again("Nobody can be let in just now."),
  broker_unavailable: again("The service is interrupted."),
  cancelled: again("The answer was cancelled.", "Ask again when you like."),
  context_length_exceeded: never(
    "This conversation is too long for the model.",
    "Start a new chat, shorten the question, or choose a model with more room.",
  ),
  context_unavailable: again("The conversation's memory is away."),
  conversation_busy: again("The last question is still being answered.", "Wait for its end, then ask again."),
  deadline_exceeded: again("The answer took too long and was ended.", "Ask again, or ask for less."),
  deadline_unreachable: again("The line is too long: the answer would come too late.", "Ask again in a while."),
  engine_failed: again("The model failed while it was answering."),
  forbidden: never("This page may not use the gateway.", "Open the gateway's own address, or ask who runs it."),
  going_away: again("The gateway is being restarted."),
  internal_error: again("Something broke on the gateway's side.", "Ask again; if it stays, tell who runs it."),
  invalid_api_key: again("You are not signed in.", "Sign in with a key, then ask again."),
  model_not_found: again("This model is not being served.", "Choose another one, or ask again when it is back."),
  no_worker: again("Nobody is serving this model just now."),
  payload_too_large: never("The question is too large.", "Shorten it, or split it."),
  poison: never("This question made the model fail several times.", "Put it in other words."),
  queue_full: again("Too many people are waiting for this model."),
  rate_limit_exceeded: again("You have asked more than your share.", "Ask again in a while."),
  response_not_found: again("The rest of the answer is no longer there."),
  storage_full: again("The service has no room for another answer.", "Ask again in a while."),
  too_many_attempts: again("Too many wrong keys came from your address.", "Wait a minute, then sign in."),
  too_many_responses: again("Too many answers are being written at once.", "Wait for one of them, then ask again."),
}

/** `error`: {code, message} of the server, or null. */
export function trouble(error) {
  const code = error?.code ?? ""
  const known = KNOWN[code]
  if (known !== undefined) return { code, ...known }
  return { code, what: error?.message || "The answer failed.", hint: "", retry: true }
}

#!lua name=penstock
--[==[
The quota of Penstock in Redis: every operation is one atomic call.

    FCALL penstock_<operation> 5 <counters> <reservations> <deadlines> <definitions> <outbox> <argument>

KEYS of organisation ORG, partition P = crc16(ORG) mod 64 (the CRC that Redis Cluster uses, XMODEM):

    {qP}:ORG:counters      hash   one field for each limit; _epoch, _clk, _policy, _restored; _learned/<model>
    {qP}:ORG:reservations  hash   one field for each id that is remembered
    {qP}:ORG:deadlines     zset   by score: when an open id is due; when an ended one is forgotten (less 2^53)
    {qP}:ORG:definitions   hash   version, digest, shard; key/<id>, model/<name>, limits/<owner>
    {qP}:outbox            stream one entry for each event, field `e`: JSON, fields of penstock.quota.events.Event;
                                  field `t` where the nonce is a traceparent: that, for the keeper's spans

ARGV: one JSON object with the fields of the call of the same name in penstock.quota.operations, all of them: what is
None there is null here. `caller_now_ms` is the caller's clock. Times are Unix milliseconds, amounts are tokens,
requests or nano-dollars, prices pico-dollars; all integers. `usage` is {"prompt", "completion", "cached", "source"}.

    reserve    organisation caller_now_ms reservation nonce fingerprint key key_mac route model body_bytes prompts
               prompt_tokens|null outputs_bound lane("realtime"|"queue") job_deadline_ms
                 -> Reserved Denied Duplicate Mismatch NoKey OutOfScope NotReady ClockSkew Invalid
    settle     organisation caller_now_ms reservation usage  -> Settled Duplicate Unknown NotReady Invalid
    void       ... reservation reason                        -> Done Duplicate NotReady
    touch      ... reservation prompt completion             -> Touched Cancelled Duplicate Unknown NotReady Invalid
    acquire    reserve's fields, epoch                       -> Run Wait Never Gone NotReady ClockSkew Invalid
    published  ... reservation                               -> Done Duplicate Unknown NotReady
    cancel     ... reservation                               -> Done Duplicate Unknown NotReady
    extend     ... reservation total_tokens                  -> Extended Denied Duplicate Unknown NotReady Invalid
    sweep      ... count_max                                 -> Swept NotReady
    define     ... version definitions                       -> Done Refused
    ready      ... epoch restored|null: Refused unless       -> Done Refused
               the state is what these pages of a restore brought ("": none did)
    reassert   ... arguments(reserve's fields) acquired prompt completion renewed_at_ms
                                                             -> Done Duplicate Refused NotReady
    post       ... arguments(reserve's fields) usage already_charged(event)|null
                                                             -> Settled Duplicate NotReady Invalid
    inspect    organisation caller_now_ms [holds_max         -> Inspected NotReady
               after_ms after]: one page of holds, in the order of due time and id, instead of all of them by id
    look       ... reservation                               -> Seen Unknown NotReady
    restore    ... clock_ms counters tombstones jobs         -> Done Refused
               [rebuild page]: of this rebuild's pages, from 0; Refused unless those before are there, so that
               `_restored` is "<pages> <rebuild>" once all are, and a store that forgot some of them is never ready
    version    0 keys, no argument                           -> the text of VERSION below

The reply is a JSON object: {"answer": "<class of penstock.quota.operations>", its fields...}. Tuples are arrays in the
order of their fields, so a reading is [limit, cap, available, resets_in_ms]:

    {"answer":"Reserved","deadline_ms":1700000060000,"tokens_held":100,"epoch":1,"shard":0,
     "readings":[["acme/tokens/minute",200000,199900,30]]}
    {"answer":"Denied","limit":"acme/tokens/day","refusal":"used_up"|"held"|"never","amount":100,"available":80,
     "retry_after_ms":6400000,"readings":[...]}
    {"answer":"Duplicate","state":"open"|"posted"|"voided"|"expired"|"late"}    {"answer":"OutOfScope","what":"model"}
    {"answer":"Settled","state":"posted"|"late","cost_nanos":285000}            {"answer":"Invalid","why":"..."}
    {"answer":"Run","deadline_ms":...}    {"answer":"Wait","retry_after_ms":1000}    {"answer":"Gone"}

An argument that is no call at all (no JSON, a field missing or of another type, keys of another organisation) is an
error reply that begins with PENSTOCK. Whatever the reply, everything was written or nothing: what a call changes is
collected and written at its end. Reserve is refused by a Redis at its maxmemory; whatever frees or posts is not.

An id's life:  ABSENT -> open -> posted | voided | expired    expired -> late    ABSENT -> voided
An open job of the queue lane:  queued -> running -> published    running -> queued when its lease passes
]==]

local VERSION = '1'

local LEASE_MS = 60000
local REMEMBER_MS = 900000
local SKEW_MS = 30000
local WAIT_MS = 1000
local INLINE_MAX = 4
local LIMITS_MAX = 32
local DEPTH_MAX = 32
local PAGE_MAX = 10000
local TOKENS_MAX = 2147483648
local BODY_UNBOUNDED = 2147483647
local EXACT_MAX = 4503599627370496 -- 2^52
local FORGET_OFFSET = 9007199254740992 -- 2^53: takes the scores of ended ids below those of open ones
local SAMPLES_MIN, SAMPLES_MAX = 20, 1024
local DAY_MS = 86400000
local TRACEPARENT = '^00%-[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+$'
local RATE_PERIOD_MAX_MS = 2097152 -- 2^21: with 2^31 tokens a level stays within 2^52

-- Redis hides the standard library from a library that is loading, so these are bound in the first call.
local floor, fmod, max, min, byte, find, match, format, concat, sort, unpack_table
local pack_text, unpack_text, pack_struct, unpack_struct, decode, encode, null, is_table, pairs_of

local function bind()
  floor, fmod, max, min = math.floor, math.fmod, math.max, math.min
  byte, find, match, format = string.byte, string.find, string.match, string.format
  concat, sort, unpack_table = table.concat, table.sort, unpack
  pack_text, unpack_text = cmsgpack.pack, cmsgpack.unpack
  pack_struct, unpack_struct = struct.pack, struct.unpack
  local json = cjson.new() -- one of our own, so that settings here change nothing for others
  json.decode_invalid_numbers(false)
  json.decode_max_depth(DEPTH_MAX)
  decode, encode, null = json.decode, json.encode, cjson.null
  pairs_of = pairs
  is_table = function(value) return type(value) == 'table' end
end

-- The store's clock, Unix milliseconds. TIME moves within a call before Redis 7.2: this is called once in each.
local function time_ms() local time = redis.call('TIME') return time[1] * 1000 + floor(time[2] / 1000) end

-- Remembers what a text was turned into. By the text itself, so it is never out of date; and bounded.
local MEMO_MAX = 4096
local function memo_of(make)
  local known, count = {}, 0
  return function(text)
    local value = known[text]
    if value == nil then
      if count >= MEMO_MAX then known, count = {}, 0 end
      value, count = make(text), count + 1
      known[text] = value
    end
    return value
  end
end

-- Exact integers -----------------------------------------------------------------------------------------------

-- Doubles are exact up to 2^53, but `a / b` rounds and `a % b` is made from it: fmod is not, and never rounds.
local function divide(a, b)
  local rest = fmod(a, b)
  if rest < 0 then rest = rest + b end
  return (a - rest) / b
end

local function divide_up(a, b)
  local rest = fmod(a, b)
  local whole = (a - rest) / b
  return rest > 0 and whole + 1 or whole
end

-- `tostring`, `..` and cjson write %.14g, which is wrong from 10^14 on. %d is exact to 2^53, and faster than %.0f.
local function number(value)
  return format('%d', value)
end

-- Tokens times pico-dollars reach 2^61, so thousands and the rest of each price go apart. Nano-dollars, rounded up.
local function cost_nanos(price, prompt_picos, prompt, cached, completion)
  local cached_picos, completion_picos, request_picos = price[2], price[3], price[4]
  local fresh = prompt - cached
  local nanos = fresh * divide(prompt_picos, 1000) + cached * divide(cached_picos, 1000)
    + completion * divide(completion_picos, 1000) + divide(request_picos, 1000)
  local rest = fresh * fmod(prompt_picos, 1000) + cached * fmod(cached_picos, 1000)
    + completion * fmod(completion_picos, 1000) + fmod(request_picos, 1000)
  return nanos + divide_up(rest, 1000)
end

local function cost_of(price, usage)
  return cost_nanos(price, price[1], usage.prompt, usage.cached, usage.completion)
end

local function cost_most(price, prompt, completion)
  return cost_nanos(price, max(price[1], price[2]), prompt, 0, completion)
end

local function cost_least(price, prompt, completion)
  return cost_nanos(price, min(price[1], price[2]), prompt, 0, completion)
end

-- The order of texts by their bytes, as the model has it: `<` follows the locale that Redis was started under.
local function is_before(one, other)
  for index = 1, min(#one, #other) do
    local a, b = byte(one, index), byte(other, index)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- Windows ------------------------------------------------------------------------------------------------------

-- The calendar of months, in days since 1970-01-01, by years that begin in March: 400 years have 146,097 days.
local function month_of_day(day)
  local shifted = day + 719468
  local era = divide(shifted, 146097)
  local day_of_era = shifted - era * 146097
  local leap_days = divide(day_of_era, 1460) - divide(day_of_era, 36524) + divide(day_of_era, 146096)
  local year = divide(day_of_era - leap_days, 365)
  local day_of_year = day_of_era - (365 * year + divide(year, 4) - divide(year, 100))
  return (year + era * 400) * 12 + divide(5 * day_of_year + 2, 153) + 2
end

local function first_day_of_month(month)
  local march = month - 2
  local year = divide(march, 12)
  local era = divide(year, 400)
  local year_of_era = year - era * 400
  local day_of_year = divide(153 * (march - year * 12) + 2, 5)
  return era * 146097 + year_of_era * 365 + divide(year_of_era, 4) - divide(year_of_era, 100) + day_of_year - 719468
end

-- The last day and month that were asked for, since it is nearly always the same one.
local known_day, month_of_known_day, known_month, end_of_known_month

local function window_of(counter, now)
  if counter.period > 0 then return divide(now - counter.anchor, counter.period) end
  local day = divide(now, DAY_MS)
  if day ~= known_day then known_day, month_of_known_day = day, month_of_day(day) end
  return month_of_known_day
end

local function window_ends_ms(counter)
  local window = counter.window
  if counter.period > 0 then return (window + 1) * counter.period + counter.anchor end
  if window ~= known_month then known_month, end_of_known_month = window, first_day_of_month(window + 1) * DAY_MS end
  return end_of_known_month
end

-- Counters -----------------------------------------------------------------------------------------------------
-- One limit's state. Windows have used, held and window; buckets have level (tokens x period) and rolled_at;
-- places have held. The field carries kind, metric, period, anchor and cap, so that ending needs no definitions.

local WINDOW, RATE, STRICT, CONCURRENT, ENQUEUED = 1, 2, 3, 4, 5
local KIND_CODES = {window = WINDOW, rate = RATE, strict_rate = STRICT, concurrency = CONCURRENT, enqueued = ENQUEUED}
local TOKENS, REQUESTS, COST, FLIGHT = 1, 2, 3, 4
local METRIC_CODES = {tokens = TOKENS, requests = REQUESTS, cost = COST, concurrency = FLIGHT}
local COUNTER = '<BBBddddddd'

local function unpack_counter(raw)
  local kind, metric, defined, period, anchor, cap, first, held, at, forgiven = unpack_struct(COUNTER, raw)
  if kind == WINDOW then
    return {kind = kind, metric = metric, defined = defined, period = period, anchor = anchor, cap = cap,
      held = held, forgiven = forgiven, used = first, window = at, is_changed = false}
  end
  return {kind = kind, metric = metric, defined = defined, period = period, anchor = anchor, cap = cap,
    held = held, forgiven = forgiven, level = first, rolled_at = at, is_changed = false}
end

local function pack_counter(c)
  return pack_struct(COUNTER, c.kind, c.metric, c.defined, c.period, c.anchor, c.cap, c.used or c.level, c.held,
    c.window or c.rolled_at, c.forgiven)
end

local function is_bucket(counter)
  return counter.kind == RATE or counter.kind == STRICT
end

local function is_place(counter)
  return counter.kind == CONCURRENT or counter.kind == ENQUEUED
end

-- To now, which is never before the last time. Buckets: cap x elapsed only where it cannot pass what is missing.
local function roll(counter, now)
  if counter.kind == WINDOW then
    local window = window_of(counter, now)
    if window > counter.window then counter.used, counter.window = 0, window end
  elseif is_bucket(counter) and now > counter.rolled_at then
    local elapsed, full = now - counter.rolled_at, counter.cap * counter.period
    counter.rolled_at = now
    if counter.cap > 0 then
      local gap = full - counter.level
      if elapsed >= divide_up(gap, counter.cap) then
        counter.level = full
      else
        counter.level = counter.level + counter.cap * elapsed
      end
    end
  end
end

-- Give back (or take, if negative) an amount of a bucket: never above the present full, never below the floor.
local function pour(counter, amount)
  local level = min(counter.level + amount * counter.period, counter.cap * counter.period)
  if level < -EXACT_MAX then
    counter.forgiven = min(EXACT_MAX, counter.forgiven - EXACT_MAX - level)
    level = -EXACT_MAX
  end
  counter.level = level
end

-- What may still be reserved; negative in debt, or above a lowered cap.
local function spare(counter, cap)
  if counter.kind == WINDOW then return cap - counter.used - counter.held end
  if is_place(counter) then return cap - counter.held end
  return divide(counter.level, counter.period)
end

local function available(counter, cap)
  return max(0, spare(counter, cap))
end

local function resets_in_ms(counter, now)
  if counter.kind == WINDOW then return window_ends_ms(counter) - now end
  if is_place(counter) or counter.cap == 0 then return 0 end
  return divide_up(counter.cap * counter.period - counter.level, counter.cap)
end

-- Whether `amount` more fits. `total` is what the request would then have of it: more than the cap never fits.
-- Returns nil, or the refusal and the milliseconds until a retry may succeed.
local function refusal_of(counter, amount, total, now)
  local fits = counter.cap > 0 and amount <= spare(counter, counter.cap)
  if fits then return nil end
  if counter.cap == 0 or total > counter.cap then return 'never', 0 end
  if counter.kind == WINDOW then
    if counter.used + total > counter.cap then return 'used_up', window_ends_ms(counter) - now end
    return 'held', WAIT_MS
  end
  if is_place(counter) then return 'held', WAIT_MS end
  return 'used_up', divide_up(amount * counter.period - counter.level, counter.cap)
end

-- Reservations -------------------------------------------------------------------------------------------------
-- `windows`, `rates` and `flight` name the limits that hold, or were debited, now; `flight` its places: in flight, or
-- in the queue while a job has never run. `charged_*`: by the expiry.

-- The order is that of the stored text. Written out: a table that grows in a loop is made anew six times on the way.
local function unpack_reservation(id, raw)
  local v = unpack_text(raw)
  return {
    id = id, state = v[1], nonce = v[2], fingerprint = v[3], key = v[4], team = v[5], model = v[6], lane = v[7],
    windows = v[8], rates = v[9], flight = v[10], tokens_held = v[11], prompt_held = v[12], cost_held = v[13],
    price = v[14], job_deadline_ms = v[15], due_ms = v[16], prompt_tokens = v[17], body_bytes = v[18],
    touched_prompt = v[19], touched_completion = v[20], running = v[21], started = v[22], published = v[23],
    cancelled = v[24], paid = v[25], charged_prompt = v[26], charged_completion = v[27], charged_requests = v[28],
    charged_cost = v[29], never = v[30]
  }
end

local function pack_reservation(r)
  return pack_text({
    r.state, r.nonce or false, r.fingerprint or false, r.key, r.team or false, r.model, r.lane, r.windows, r.rates,
    r.flight, r.tokens_held, r.prompt_held, r.cost_held, r.price, r.job_deadline_ms, r.due_ms,
    r.prompt_tokens or false, r.body_bytes, r.touched_prompt, r.touched_completion, r.running, r.started,
    r.published, r.cancelled, r.paid, r.charged_prompt, r.charged_completion, r.charged_requests, r.charged_cost,
    r.never
  })
end

-- Held by this reservation of a limit that counts `metric`.
local function held_of(reservation, metric)
  if metric == TOKENS then return reservation.tokens_held end
  if metric == COST then return reservation.cost_held end
  return 1
end

-- A call -------------------------------------------------------------------------------------------------------
-- Reads are kept and writes are collected here, so that an error on the way leaves everything as it was.

local function open_call(keys, argument)
  local state = redis.call('HMGET', keys[1], '_epoch', '_clk', '_policy', '_restored')
  return {
    keys = keys, argument = argument, organisation = argument.organisation,
    epoch = state[1] and tonumber(state[1]) or nil, clock = state[2] and tonumber(state[2]) or 0,
    policy = state[3] or 'strict', restored = state[4] or '', counters = {}, reservations = {}, changed = {}, forgotten = {},
    events = {}, traces = {}, learned = {},
  }
end

-- Read these limits' counters in one go, rolled to now. Missing ones stay missing: a limit is never counted as zero.
local function load_counters(call, ids)
  local missing = {}
  for index = 1, #ids do
    if call.counters[ids[index]] == nil then missing[#missing + 1] = ids[index] end
  end
  if #missing == 0 then return end
  local raws = redis.call('HMGET', call.keys[1], unpack_table(missing))
  for index = 1, #missing do
    if not raws[index] then error('PENSTOCK the counter of ' .. missing[index] .. ' is missing; rebuild') end
    local counter = unpack_counter(raws[index])
    roll(counter, call.now)
    call.counters[missing[index]] = counter
  end
end

local function change_counter(call, id)
  local counter = call.counters[id]
  counter.is_changed = true
  return counter
end

local function find_reservation(call, id)
  local known = call.reservations[id]
  if known == nil then
    local raw = redis.call('HGET', call.keys[2], id)
    known = raw and unpack_reservation(id, raw) or false
    call.reservations[id] = known
  end
  return known or nil
end

local function keep(call, reservation)
  call.reservations[reservation.id] = reservation
  call.changed[reservation.id] = reservation
end

local function in_steps(command, key, values)
  for first = 1, #values, 1000 do
    redis.call(command, key, unpack_table(values, first, min(first + 999, #values)))
  end
end

-- Write everything that the call changed. Nothing before this line has written anything.
local function commit(call)
  local counters, reservations, deadlines, forgotten = {'_clk', number(call.now)}, {}, {}, {}
  if call.new_epoch then counters[3], counters[4] = '_epoch', number(call.new_epoch) end
  if call.new_restored then counters[3], counters[4] = '_restored', call.new_restored end
  if call.definitions then counters[3], counters[4] = '_policy', call.policy end
  for id, counter in pairs_of(call.counters) do
    if counter.is_changed then
      counters[#counters + 1] = id
      counters[#counters + 1] = pack_counter(counter)
    end
  end
  for model, learned in pairs_of(call.learned) do
    counters[#counters + 1] = '_learned/' .. model
    counters[#counters + 1] = pack_text(learned)
  end
  for id, reservation in pairs_of(call.changed) do
    local score = reservation.due_ms
    if reservation.state ~= 'open' then score = score - FORGET_OFFSET end
    reservations[#reservations + 1] = id
    reservations[#reservations + 1] = pack_reservation(reservation)
    deadlines[#deadlines + 1] = number(score)
    deadlines[#deadlines + 1] = id
  end
  for id in pairs_of(call.forgotten) do
    if not call.changed[id] then forgotten[#forgotten + 1] = id end
  end
  if call.definitions then
    redis.call('DEL', call.keys[4])
    in_steps('HSET', call.keys[4], call.definitions)
  end
  in_steps('HSET', call.keys[1], counters)
  in_steps('HSET', call.keys[2], reservations)
  in_steps('ZADD', call.keys[3], deadlines)
  in_steps('HDEL', call.keys[2], forgotten)
  in_steps('ZREM', call.keys[3], forgotten)
  for index = 1, #call.events do
    local trace = call.traces[index]
    if trace then
      redis.call('XADD', call.keys[5], '*', 'e', call.events[index], 't', trace)
    else
      redis.call('XADD', call.keys[5], '*', 'e', call.events[index])
    end
  end
end

-- JSON ---------------------------------------------------------------------------------------------------------

local function quote(text)
  if not text then return 'null' end
  if find(text, '[%c"\\\127]') then return encode(text) end
  return '"' .. text .. '"'
end

local known_quote = memo_of(quote)

-- The same of what comes again and again: limits, keys, models.
local function quote_name(text)
  return text and known_quote(text) or 'null'
end

local function truth(value)
  return value and 'true' or 'false'
end

-- Of what bounds the queue there is none: it is no limit of the request itself.
local function readings_of(call, ids)
  local readings = {}
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    if counter.kind ~= ENQUEUED then
      readings[#readings + 1] = '[' .. quote_name(ids[index]) .. format(',%d,%d,%d]', counter.cap,
        available(counter, counter.cap), resets_in_ms(counter, call.now))
    end
  end
  return '[' .. concat(readings, ',') .. ']'
end

local NOT_READY, CLOCK_SKEW = '{"answer":"NotReady"}', '{"answer":"ClockSkew"}'
local DONE, GONE, UNKNOWN = '{"answer":"Done"}', '{"answer":"Gone"}', '{"answer":"Unknown"}'

local function duplicate(reservation)
  return format('{"answer":"Duplicate","state":"%s"}', reservation.state)
end

local function invalid(why)
  return format('{"answer":"Invalid","why":%s}', quote(why))
end

local function refused(why)
  return format('{"answer":"Refused","why":%s}', quote(why))
end

local function wait(retry_after_ms)
  return format('{"answer":"Wait","retry_after_ms":%d}', retry_after_ms)
end

-- Events -------------------------------------------------------------------------------------------------------

local NO_USAGE = {prompt = 0, completion = 0, cached = 0, source = 'none'}
local NO_CHARGE = {tokens = 0, requests = 0, cost = 0}

-- `amounts`: pairs of a window limit's id and what was posted to its present window.
local function record(call, reservation, kind, usage, charge, amounts, tokens_held, reason)
  local posted = {}
  for index = 1, #amounts do
    local limit, amount = amounts[index][1], amounts[index][2]
    local window = call.counters[limit].window
    posted[index] = format('{"limit":%s,"window":%d,"amount":%d}', quote_name(limit), window, amount)
  end
  local price, nonce = reservation.price, reservation.nonce
  if nonce and #nonce == 55 and find(nonce, TRACEPARENT) then call.traces[#call.events + 1] = nonce end
  call.events[#call.events + 1] = concat({
    '{"kind":"', kind, '","reservation":', quote(reservation.id), ',"organisation":', quote_name(call.organisation),
    ',"team":', quote_name(reservation.team), ',"key":', quote_name(reservation.key),
    ',"model":', quote_name(reservation.model), ',"lane":', quote_name(reservation.lane),
    ',"occurred_at_ms":', number(call.now),
    format(',"usage":{"prompt":%d,"completion":%d,"cached":%d,"source":"%s"}', usage.prompt, usage.completion,
      usage.cached, usage.source),
    format(',"charge":{"tokens":%d,"requests":%d,"cost_nanos":%d}', charge.tokens, charge.requests, charge.cost),
    ',"amounts":[', concat(posted, ','), ']',
    format(',"price":{"prompt_picos":%d,"cached_picos":%d,"completion_picos":%d,"request_picos":%d}',
      price[1], price[2], price[3], price[4]),
    format(',"tokens_held":%d,"job_deadline_ms":%d', tokens_held, reservation.job_deadline_ms),
    ',"reason":', quote(reason or ''), '}',
  })
end

local function charged_of(charge, metric)
  if metric == TOKENS then return charge.tokens end
  if metric == COST then return charge.cost end
  return charge.requests
end

-- Ending -------------------------------------------------------------------------------------------------------

local function end_as(call, reservation, state)
  reservation.state, reservation.running = state, false
  reservation.due_ms = max(call.now + REMEMBER_MS, reservation.job_deadline_ms)
  if state ~= 'expired' then reservation.windows, reservation.rates = {}, {} end
  keep(call, reservation)
end

local function leave_flight(call, reservation)
  load_counters(call, reservation.flight)
  for index = 1, #reservation.flight do
    local counter = change_counter(call, reservation.flight[index])
    counter.held = counter.held - held_of(reservation, counter.metric)
  end
  reservation.flight = {}
end

-- Post to windows; returns what was posted, for the event. Nothing is listed that nothing was posted to.
local function post_to_windows(call, ids, charge)
  load_counters(call, ids)
  local amounts = {}
  for index = 1, #ids do
    local counter = change_counter(call, ids[index])
    local amount = charged_of(charge, counter.metric)
    counter.used = counter.used + amount
    if amount > 0 then amounts[#amounts + 1] = {ids[index], amount} end
  end
  return amounts
end

local function joined(one, two, three)
  local all = {unpack_table(one)}
  for index = 1, #two do all[#all + 1] = two[index] end
  for index = 1, #three do all[#all + 1] = three[index] end
  return all
end

-- OPEN -> `state`: frees every hold and posts `charge` in its place. A strict rate gets nothing back but from a void.
local function finish(call, reservation, state, usage, charge, reason)
  load_counters(call, joined(reservation.windows, reservation.rates, reservation.flight))
  for index = 1, #reservation.windows do
    local counter = change_counter(call, reservation.windows[index])
    counter.held = counter.held - held_of(reservation, counter.metric)
  end
  local amounts = post_to_windows(call, reservation.windows, charge)
  for index = 1, #reservation.rates do
    local counter = change_counter(call, reservation.rates[index])
    local back = held_of(reservation, counter.metric) - charged_of(charge, counter.metric)
    if back < 0 or counter.kind == RATE or state == 'voided' then pour(counter, back) end
  end
  leave_flight(call, reservation)
  record(call, reservation, state, usage, charge, amounts, reservation.tokens_held, reason)
  end_as(call, reservation, state)
end

local function void_open(call, reservation, reason)
  finish(call, reservation, 'voided', NO_USAGE, NO_CHARGE, reason)
end

-- A deadline passed. A silent executor's job goes back to the queue; all else expires, at the least it can have used.
local function lapse(call, reservation)
  local is_job = reservation.lane == 'queue'
  if is_job and reservation.running and not reservation.cancelled and call.now < reservation.job_deadline_ms then
    leave_flight(call, reservation)
    reservation.running, reservation.due_ms = false, reservation.job_deadline_ms
    keep(call, reservation)
    return
  end
  local usage, charge = NO_USAGE, NO_CHARGE
  if reservation.started then
    local prompt = max(reservation.prompt_tokens or 0, reservation.touched_prompt)
    local completion = min(reservation.touched_completion, TOKENS_MAX - prompt)
    usage = {prompt = prompt, completion = completion, cached = 0,
      source = prompt + completion > 0 and 'local' or 'none'}
    charge = {tokens = prompt + completion, requests = 1, cost = cost_least(reservation.price, prompt, completion)}
  end
  finish(call, reservation, 'expired', usage, charge, reservation.cancelled and 'cancelled' or 'deadline')
  reservation.charged_prompt, reservation.charged_completion = usage.prompt, usage.completion
  reservation.charged_requests, reservation.charged_cost = charge.requests, charge.cost
end

-- Expire what is due, and forget what ended long ago: `count_max` of each. Returns how many were due.
local function sweep(call, count_max)
  if count_max <= 0 then return 0 end
  local count = number(count_max)
  local due = redis.call('ZRANGEBYSCORE', call.keys[3], '0', number(call.now), 'LIMIT', '0', count)
  for index = 1, #due do lapse(call, find_reservation(call, due[index])) end
  local passed = number(call.now - FORGET_OFFSET)
  local forgotten = redis.call('ZRANGEBYSCORE', call.keys[3], '-inf', passed, 'LIMIT', '0', count)
  for index = 1, #forgotten do
    call.forgotten[forgotten[index]] = true
    call.reservations[forgotten[index]] = false
  end
  return #due
end

-- What every call begins with but sweep, define, ready and those that only read. A call that is open will be committed.
local function begin(call, id)
  call.is_open = true
  sweep(call, INLINE_MAX)
  local reservation = id and find_reservation(call, id)
  if reservation and reservation.state == 'open' and reservation.due_ms <= call.now then lapse(call, reservation) end
  return reservation
end

-- EXPIRED -> LATE: only what the expiry did not charge. Rates had kept what was charged, strict ones the whole hold.
local function add_late(call, reservation, usage)
  local charged = reservation.charged_prompt + reservation.charged_completion
  local tokens, cost = usage.prompt + usage.completion, cost_of(reservation.price, usage)
  local charge = {tokens = max(0, tokens - charged), requests = 1 - reservation.charged_requests,
    cost = max(0, cost - reservation.charged_cost)}
  local amounts = post_to_windows(call, reservation.windows, charge)
  load_counters(call, reservation.rates)
  for index = 1, #reservation.rates do
    local counter = change_counter(call, reservation.rates[index])
    if counter.metric == TOKENS then
      local paid = counter.kind == STRICT and max(charged, reservation.tokens_held) or charged
      pour(counter, -max(0, tokens - paid))
    end
  end
  local added = {prompt = max(0, usage.prompt - reservation.charged_prompt),
    completion = max(0, usage.completion - reservation.charged_completion), cached = usage.cached,
    source = usage.source}
  record(call, reservation, 'late', added, charge, amounts, 0)
  end_as(call, reservation, 'late')
  return charge.cost
end

-- Definitions --------------------------------------------------------------------------------------------------

local function named_set(list)
  if not list then return nil end
  local set = {}
  for index = 1, #list do set[list[index]] = true end
  return set
end

local unpack_list = memo_of(function(raw) return unpack_text(raw) end)

local unpack_key = memo_of(function(raw)
  local values = unpack_text(raw)
  return {team = values[1] or nil, verified = values[2], revoked = values[3], expires_at_ms = values[4],
    cost_nanos_max = values[5], macs = values[6], models = named_set(values[7]), routes = named_set(values[8])}
end)

local unpack_model = memo_of(function(raw)
  local values = unpack_text(raw)
  return {context = values[1], template_tokens = values[2], tokens_per_byte_max = values[3],
    price = {values[4], values[5], values[6], values[7]}}
end)

-- What a request is subject to: its key, its model, and below whom limits are looked for. Of a verified subject,
-- "<key>~<subject>", these are the key's; a key of another kind has no subjects.
local function read_subject(call, key, model)
  local own, defined = call.organisation, match(key, '^[^~]*')
  local raws = redis.call('HMGET', call.keys[4], 'key/' .. defined, 'model/' .. model, 'limits/' .. own,
    'limits/' .. own .. ':key:' .. defined, 'shard')
  local found = raws[1] and unpack_key(raws[1]) or nil
  if found and defined ~= key and not found.verified then found = nil end
  return {key = found, model = raws[2] and unpack_model(raws[2]) or nil, model_name = model,
    lists = {raws[3], raws[4]}, shard = tonumber(raws[5] or 0)}
end

-- The ids of every limit that a request falls under, sorted: '/' sorts before ':', and "key" before "team".
local function limits_of(call, subject, team)
  local lists, ids = subject.lists, {}
  if team then lists[3] = redis.call('HGET', call.keys[4], 'limits/' .. call.organisation .. ':team:' .. team) end
  for owner = 1, 3 do
    if lists[owner] then
      local list = unpack_list(lists[owner])
      for index = 1, #list, 2 do
        local model = list[index + 1]
        if not model or model == subject.model_name then ids[#ids + 1] = list[index] end
      end
    end
  end
  load_counters(call, ids)
  return ids
end

-- How much to reserve ------------------------------------------------------------------------------------------

local EDGES = {16}
for index = 2, 63 do EDGES[index] = EDGES[index - 1] + (EDGES[index - 1] - EDGES[index - 1] % 6) / 6 end
EDGES[64] = TOKENS_MAX
local PROMPT_TOKENS, PROMPT_BYTES, COUNT, BINS = 1, 2, 3, 3 -- a learned list: these three, then a bin for each edge

local function read_learned(call, model)
  if not call.learned[model] then
    local raw = redis.call('HGET', call.keys[1], '_learned/' .. model)
    if raw then return unpack_text(raw) end
    local learned = {0, 0, 0}
    for bin = 1, #EDGES do learned[BINS + bin] = 0 end
    return learned
  end
  return call.learned[model]
end

local function learn(call, reservation, usage)
  if call.policy ~= 'learned' then return end
  local learned = read_learned(call, reservation.model)
  local bin = 1
  while EDGES[bin] < usage.completion do bin = bin + 1 end
  learned[BINS + bin] = learned[BINS + bin] + 1
  learned[COUNT] = learned[COUNT] + 1
  if reservation.body_bytes < BODY_UNBOUNDED then
    learned[PROMPT_TOKENS] = learned[PROMPT_TOKENS] + usage.prompt
    learned[PROMPT_BYTES] = learned[PROMPT_BYTES] + reservation.body_bytes
  end
  if learned[COUNT] >= SAMPLES_MAX then
    learned[COUNT] = 0
    for index = 1, #EDGES do
      learned[BINS + index] = floor(learned[BINS + index] / 2)
      learned[COUNT] = learned[COUNT] + learned[BINS + index]
    end
    learned[PROMPT_TOKENS] = floor(learned[PROMPT_TOKENS] / 2)
    learned[PROMPT_BYTES] = floor(learned[PROMPT_BYTES] / 2)
  end
  call.learned[reservation.model] = learned
end

local function learned_completion(learned)
  local cumulative = 0
  for bin = 1, #EDGES do
    cumulative = cumulative + learned[BINS + bin]
    if 100 * cumulative >= 95 * learned[COUNT] then return EDGES[bin] end
  end
end

local function learned_prompt(learned, body_bytes)
  if body_bytes == BODY_UNBOUNDED or learned[PROMPT_BYTES] == 0 then return nil end
  return divide_up(divide_up(1000 * learned[PROMPT_TOKENS], learned[PROMPT_BYTES]) * body_bytes, 1000)
end

-- The bounds of a request's prompt and completion, in tokens; learned, they are never above the strict ones.
local function size_of(call, request, model)
  local prompt, completion = request.prompt_tokens, request.outputs_bound
  if not prompt then
    prompt = min(request.body_bytes * model.tokens_per_byte_max, model.context * request.prompts)
      + model.template_tokens * request.prompts
  end
  if call.policy == 'learned' then
    local learned = read_learned(call, request.model)
    if learned[COUNT] >= SAMPLES_MIN then
      completion = min(completion, learned_completion(learned))
      if not request.prompt_tokens then
        prompt = min(prompt, learned_prompt(learned, request.body_bytes) or prompt)
      end
    end
  end
  return prompt, completion
end

-- Admission ----------------------------------------------------------------------------------------------------

local function is_whole(value, least, most)
  return type(value) == 'number' and value == floor(value) and value >= least and value <= most
end

local PRICE_BOUNDS = {{'prompt_picos', 0, 1073741824}, {'cached_picos', 0, 1073741824},
  {'completion_picos', 0, 1073741824}, {'request_picos', 0, 1099511627776}}

local function are_prices(price)
  for index = 1, #PRICE_BOUNDS do
    local bounds = PRICE_BOUNDS[index]
    if not is_whole(price[bounds[1]], bounds[2], bounds[3]) then return false end
  end
  return true
end

local REQUEST_BOUNDS = {
  {'body_bytes', 0, BODY_UNBOUNDED, '2147483647'}, {'prompts', 1, TOKENS_MAX, '2147483648'},
  {'prompt_tokens', 0, TOKENS_MAX, '2147483648'}, {'outputs_bound', 0, TOKENS_MAX, '2147483648'},
  {'job_deadline_ms', 0, EXACT_MAX, '2^52'},
}

-- What is wrong with a request's sizes, or nil.
local function request_fault(request)
  for index = 1, #REQUEST_BOUNDS do
    local bounds = REQUEST_BOUNDS[index]
    local name, value = bounds[1], request[bounds[1]]
    if value and (value < bounds[2] or value > bounds[3]) then
      return format('%s is %d; allowed are %d to %s', name, value, bounds[2], bounds[4])
    end
  end
end

local function usage_fault(usage)
  local prompt, completion, cached = usage.prompt, usage.completion, usage.cached
  if completion < 0 or cached < 0 or cached > prompt or prompt + completion > TOKENS_MAX then
    return format('usage of %d prompt, %d cached and %d completion tokens is absurd: none may be negative, '
      .. 'cached is a part of prompt, and together they are at most %d', prompt, cached, completion, TOKENS_MAX)
  end
end

local function progress_fault(prompt, completion)
  if prompt < 0 or completion < 0 or prompt + completion > TOKENS_MAX then
    return format('progress of %d and %d tokens; allowed are 0 to %d together', prompt, completion, TOKENS_MAX)
  end
end

-- Unknown, wrong, revoked and expired look the same. An empty mac passes only for a verified subject.
local function is_genuine(key, mac, now)
  if not key or key.revoked or (key.expires_at_ms ~= 0 and now >= key.expires_at_ms) then return false end
  if key.verified then return mac == '' end
  for index = 1, #key.macs do
    local expires_at_ms = key.macs[index][2]
    if mac ~= '' and key.macs[index][1] == mac and (expires_at_ms == 0 or now < expires_at_ms) then return true end
  end
  return false
end

local function lease_ends_ms(call, reservation)
  return min(call.now + LEASE_MS, reservation.job_deadline_ms)
end

local function make_reservation(call, request, team, price, prompt, completion)
  return {
    id = request.reservation, state = 'open', nonce = request.nonce, fingerprint = request.fingerprint,
    key = request.key, team = team, model = request.model, lane = request.lane, windows = {}, rates = {}, flight = {},
    tokens_held = prompt + completion, prompt_held = prompt, cost_held = cost_most(price, prompt, completion),
    price = price, job_deadline_ms = request.job_deadline_ms, due_ms = request.job_deadline_ms,
    prompt_tokens = request.prompt_tokens, body_bytes = request.body_bytes, touched_prompt = 0, touched_completion = 0,
    running = false, started = false, published = false, cancelled = false, paid = false, charged_prompt = 0,
    charged_completion = 0, charged_requests = 0, charged_cost = 0, never = false,
  }
end

local function hold_windows(call, reservation, ids)
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    if counter.kind == WINDOW then
      change_counter(call, ids[index])
      counter.held = counter.held + held_of(reservation, counter.metric)
      reservation.windows[#reservation.windows + 1] = ids[index]
    end
  end
end

local function pay_rates(call, reservation, ids)
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    if is_bucket(counter) then
      pour(change_counter(call, ids[index]), -held_of(reservation, counter.metric))
      reservation.rates[#reservation.rates + 1] = ids[index]
    end
  end
  reservation.paid = true
end

-- A job that nobody has started takes its place in the queue.
local function enqueue(call, reservation, ids)
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    if counter.kind == ENQUEUED then
      change_counter(call, ids[index])
      counter.held = counter.held + held_of(reservation, counter.metric)
      reservation.flight[#reservation.flight + 1] = ids[index]
    end
  end
end

-- From here on somebody works on it: it takes a place in flight, and its deadline is a lease.
local function run(call, reservation, ids)
  leave_flight(call, reservation)
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    if counter.kind == CONCURRENT then
      change_counter(call, ids[index])
      counter.held = counter.held + 1
      reservation.flight[#reservation.flight + 1] = ids[index]
    end
  end
  reservation.running, reservation.started = true, true
  reservation.due_ms = lease_ends_ms(call, reservation)
end

-- The refusal with the longest wait, one that never ends before all others, ties by id; nil if everything fits.
-- `extent_of(counter)` gives what is asked of a limit and what would then be held of it, or nothing to ask nothing.
local function worst_refusal(call, ids, extent_of)
  local worst
  for index = 1, #ids do
    local counter = call.counters[ids[index]]
    local amount, total = extent_of(counter)
    if amount then
      local refusal, retry_after_ms = refusal_of(counter, amount, total, call.now)
      local weight = refusal == 'never' and math.huge or retry_after_ms
      if refusal and (not worst or weight > worst.weight) then
        worst = {limit = ids[index], refusal = refusal, amount = amount, weight = weight,
          retry_after_ms = retry_after_ms}
      end
    end
  end
  return worst
end

local function denied(call, worst, ids)
  local counter = call.counters[worst.limit]
  return format('{"answer":"Denied","limit":%s,"refusal":"%s","amount":%d,"available":%d,"retry_after_ms":%d,'
    .. '"readings":%s}', quote(worst.limit), worst.refusal, worst.amount, available(counter, counter.cap),
    worst.retry_after_ms, readings_of(call, ids))
end

local function reserved(call, reservation, subject, ids)
  return format('{"answer":"Reserved","deadline_ms":%d,"tokens_held":%d,"epoch":%d,"shard":%d,"readings":%s}',
    reservation.due_ms, reservation.tokens_held, call.epoch, subject.shard, readings_of(call, ids))
end

local function out_of_scope(what)
  return format('{"answer":"OutOfScope","what":"%s"}', what)
end

local function is_skewed(call, request)
  return math.abs(call.time - request.caller_now_ms) > SKEW_MS
end

local function too_large(tokens)
  return format('needs %d tokens; at most %d are possible in one request', tokens, TOKENS_MAX)
end

-- Of a known id: the same attempt, another attempt, or another request.
local function reserve_known(call, reservation, request)
  if reservation.fingerprint and reservation.fingerprint ~= request.fingerprint then return '{"answer":"Mismatch"}' end
  if reservation.state ~= 'open' or reservation.nonce ~= request.nonce then return duplicate(reservation) end
  local subject = read_subject(call, reservation.key, reservation.model)
  return reserved(call, reservation, subject, limits_of(call, subject, reservation.team))
end

-- All or nothing. A job holds windows and its place in the queue now; of its rates and its place in flight, only what
-- will never fit refuses.
local function admit(call, reservation, subject)
  local ids = limits_of(call, subject, reservation.team)
  local is_job = reservation.lane == 'queue'
  local worst = worst_refusal(call, ids, function(counter)
    local amount = held_of(reservation, counter.metric)
    if counter.kind == ENQUEUED then return is_job and amount or nil, amount end
    if is_job and counter.kind ~= WINDOW and counter.cap > 0 and amount <= counter.cap then return nil end
    return amount, amount
  end)
  if worst then return denied(call, worst, ids) end
  hold_windows(call, reservation, ids)
  if is_job then
    enqueue(call, reservation, ids)
  else
    pay_rates(call, reservation, ids)
    run(call, reservation, ids)
  end
  keep(call, reservation)
  if is_job then record(call, reservation, 'reserved', NO_USAGE, NO_CHARGE, {}, reservation.tokens_held) end
  return reserved(call, reservation, subject, ids)
end

local function reserve(call, request)
  if not call.epoch or call.epoch == 0 then return NOT_READY end
  if is_skewed(call, request) then return CLOCK_SKEW end
  local fault = request_fault(request)
  if fault then return invalid(fault) end
  local known = begin(call, request.reservation)
  local subject = read_subject(call, request.key, request.model)
  local key, model = subject.key, subject.model
  if not is_genuine(key, request.key_mac, call.now) then return '{"answer":"NoKey"}' end
  if key.models and not key.models[request.model] then return out_of_scope('model') end
  if key.routes and not key.routes[request.route] then return out_of_scope('route') end
  if known then return reserve_known(call, known, request) end
  if request.job_deadline_ms <= call.now then
    return invalid('the request\'s own deadline has passed; nothing was reserved')
  end
  if not model then return invalid(format('model %s is not defined for %s', request.model, call.organisation)) end
  local prompt, completion = size_of(call, request, model)
  if prompt + completion > TOKENS_MAX then return invalid(too_large(prompt + completion)) end
  local reservation = make_reservation(call, request, key.team, model.price, prompt, completion)
  if key.cost_nanos_max and reservation.cost_held > key.cost_nanos_max then return out_of_scope('cost') end
  return admit(call, reservation, subject)
end

-- Raises the hold of limits that hold already: of tokens and cost, all or none. What does not grow is not asked.
local function extend(call, request)
  if not is_whole(request.total_tokens, 0, TOKENS_MAX) then
    return invalid(format('total_tokens is %d; allowed are 0 to %d', request.total_tokens, TOKENS_MAX))
  end
  local reservation = begin(call, request.reservation)
  if not reservation then return UNKNOWN end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  local more = request.total_tokens - reservation.tokens_held
  if more > 0 then
    local cost = cost_most(reservation.price, reservation.prompt_held, request.total_tokens - reservation.prompt_held)
    local key = read_subject(call, reservation.key, reservation.model).key
    if key and key.cost_nanos_max and cost > key.cost_nanos_max then
      return invalid(format('would cost up to %d nano-dollars; the key allows %d for one request', cost,
        key.cost_nanos_max))
    end
    local more_cost, ids = cost - reservation.cost_held, {}
    for index = 1, #reservation.windows do ids[#ids + 1] = reservation.windows[index] end
    for index = 1, #reservation.rates do ids[#ids + 1] = reservation.rates[index] end
    local places = reservation.running and {} or reservation.flight
    for index = 1, #places do ids[#ids + 1] = places[index] end
    sort(ids, is_before)
    load_counters(call, ids)
    local function extent_of(counter)
      if counter.metric == TOKENS then return more, request.total_tokens end
      if counter.metric == COST and more_cost > 0 then return more_cost, cost end
    end
    local worst = worst_refusal(call, ids, function(counter)
      if counter.defined == 1 then return extent_of(counter) end -- a limit that left refuses nothing
    end)
    if worst then return denied(call, worst, ids) end
    for index = 1, #ids do
      local counter = call.counters[ids[index]]
      local amount = extent_of(counter)
      if amount then
        change_counter(call, ids[index])
        if is_bucket(counter) then pour(counter, -amount) else counter.held = counter.held + amount end
      end
    end
    reservation.tokens_held, reservation.cost_held = request.total_tokens, cost
    keep(call, reservation)
  end
  return format('{"answer":"Extended","tokens_held":%d}', reservation.tokens_held)
end

-- Settle, void, touch, cancel, published -----------------------------------------------------------------------

local function settled(state, cost)
  return format('{"answer":"Settled","state":"%s","cost_nanos":%d}', state, cost)
end

local function settle_known(call, reservation, usage)
  if reservation.state == 'expired' then
    local cost = add_late(call, reservation, usage)
    learn(call, reservation, usage)
    return settled('late', cost)
  end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  local charge = {tokens = usage.prompt + usage.completion, requests = 1, cost = cost_of(reservation.price, usage)}
  finish(call, reservation, 'posted', usage, charge)
  learn(call, reservation, usage)
  return settled('posted', charge.cost)
end

local function settle(call, request)
  local fault = usage_fault(request.usage)
  if fault then return invalid(fault) end
  local reservation = begin(call, request.reservation)
  if not reservation then return UNKNOWN end
  return settle_known(call, reservation, request.usage)
end

-- Of an absent id it leaves what its delayed reserve will find.
local function void(call, request)
  local reservation = begin(call, request.reservation)
  if not reservation then
    local absent = {reservation = request.reservation, lane = '', key = '', model = '', job_deadline_ms = 0,
      body_bytes = 0}
    end_as(call, make_reservation(call, absent, nil, {0, 0, 0, 0}, 0, 0), 'voided')
    return DONE
  end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  void_open(call, reservation, request.reason)
  return DONE
end

local function touch(call, request)
  local fault = progress_fault(request.prompt, request.completion)
  if fault then return invalid(fault) end
  local reservation = begin(call, request.reservation)
  if not reservation then return UNKNOWN end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  reservation.touched_prompt = max(reservation.touched_prompt, request.prompt)
  reservation.touched_completion = max(reservation.touched_completion, request.completion)
  if reservation.running and not reservation.cancelled then reservation.due_ms = lease_ends_ms(call, reservation) end
  keep(call, reservation)
  if reservation.cancelled then return '{"answer":"Cancelled"}' end
  return format('{"answer":"Touched","deadline_ms":%d}', reservation.due_ms)
end

local function cancel(call, request)
  local reservation = begin(call, request.reservation)
  if not reservation then return UNKNOWN end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  if reservation.running or reservation.published then
    reservation.cancelled = true
    keep(call, reservation)
  else
    void_open(call, reservation, 'cancelled')
  end
  return DONE
end

local function published(call, request)
  local reservation = begin(call, request.reservation)
  if not reservation then return UNKNOWN end
  if reservation.state ~= 'open' then return duplicate(reservation) end
  if not reservation.published then
    leave_flight(call, reservation)
    reservation.published, reservation.running, reservation.started = true, false, true
    reservation.due_ms = max(reservation.job_deadline_ms, call.now + LEASE_MS)
    keep(call, reservation)
  end
  return DONE
end

-- Queued jobs --------------------------------------------------------------------------------------------------

local function running(reservation)
  return format('{"answer":"Run","deadline_ms":%d}', reservation.due_ms)
end

local function never(limit)
  return format('{"answer":"Never","limit":%s}', quote(limit))
end

-- A queued job becomes running: its rates are debited the first time, its place is taken each time.
local function start_job(call, reservation)
  local subject = read_subject(call, reservation.key, reservation.model)
  local ids = limits_of(call, subject, reservation.team)
  local worst = worst_refusal(call, ids, function(counter)
    if counter.kind == WINDOW or counter.kind == ENQUEUED then return nil end
    if reservation.paid and is_bucket(counter) then return nil end
    local amount = held_of(reservation, counter.metric)
    return amount, amount
  end)
  if worst and worst.refusal == 'never' then
    void_open(call, reservation, 'its cap was lowered: ' .. worst.limit)
    reservation.never = worst.limit
    return never(worst.limit)
  end
  if worst then return wait(worst.retry_after_ms) end
  if not reservation.paid then pay_rates(call, reservation, ids) end
  run(call, reservation, ids)
  keep(call, reservation)
  record(call, reservation, 'acquired', NO_USAGE, NO_CHARGE, {}, reservation.tokens_held)
  return running(reservation)
end

-- A hold for a request that the store does not know, past every cap. Returns it and its limits, or what is wrong.
local function size_lost(call, request)
  local subject = read_subject(call, request.key, request.model)
  if not subject.model then return nil, format('model %s is not defined for %s', request.model, call.organisation) end
  local prompt, completion = size_of(call, request, subject.model)
  if prompt + completion > TOKENS_MAX then return nil, too_large(prompt + completion) end
  local team = subject.key and subject.key.team
  local reservation = make_reservation(call, request, team, subject.model.price, prompt, completion)
  local ids = limits_of(call, subject, team)
  hold_windows(call, reservation, ids)
  return reservation, ids
end

local function acquire_unknown(call, request)
  if request.job_deadline_ms <= call.now or request.epoch == call.epoch then return GONE end
  if request.epoch > call.epoch then return wait(WAIT_MS) end
  local reservation, ids = size_lost(call, request)
  if not reservation then return invalid(ids) end
  pay_rates(call, reservation, ids)
  run(call, reservation, ids)
  keep(call, reservation)
  record(call, reservation, 'acquired', NO_USAGE, NO_CHARGE, {}, reservation.tokens_held)
  return running(reservation)
end

local function acquire(call, request)
  if call.epoch == 0 then return wait(WAIT_MS) end -- what NOTREADY is to a worker that holds a message
  if is_skewed(call, request) then return CLOCK_SKEW end
  if request.lane ~= 'queue' then return invalid('only a queued job is acquired; this names the realtime lane') end
  local fault = request_fault(request)
  if fault then return invalid(fault) end
  local reservation = begin(call, request.reservation)
  if not reservation then return acquire_unknown(call, request) end
  if reservation.never then return never(reservation.never) end
  if reservation.state ~= 'open' or reservation.published or reservation.cancelled then return GONE end
  if reservation.lane ~= 'queue' or reservation.fingerprint and reservation.fingerprint ~= request.fingerprint then
    return invalid('the id is known for another request')
  end
  if not reservation.running then return start_job(call, reservation) end
  reservation.due_ms = lease_ends_ms(call, reservation)
  keep(call, reservation)
  return running(reservation)
end

-- After a loss -------------------------------------------------------------------------------------------------

local function reassert(call, request)
  local arguments = request.arguments
  local fault = request_fault(arguments) or progress_fault(request.prompt, request.completion)
  if fault then return refused(fault) end
  local reservation = begin(call, arguments.reservation)
  local has_passed, limits = call.now - request.renewed_at_ms >= LEASE_MS, nil
  if reservation then
    local is_queued = reservation.state == 'open' and reservation.lane == 'queue' and not reservation.running
      and not reservation.published
    if not is_queued or not request.acquired then return duplicate(reservation) end
    if has_passed then return refused('its lease has passed; acquire it again') end
  else
    if has_passed or arguments.job_deadline_ms <= call.now then
      return refused('its lease or its own deadline has passed; settle or post it instead')
    end
    local made, found = size_lost(call, arguments)
    if not made then return refused(found) end
    reservation, limits = made, found
  end
  if request.acquired or arguments.lane == 'realtime' then
    local subject = read_subject(call, reservation.key, reservation.model)
    run(call, reservation, limits_of(call, subject, reservation.team))
    reservation.paid = true
  else
    enqueue(call, reservation, limits)
  end
  reservation.touched_prompt = max(reservation.touched_prompt, request.prompt)
  reservation.touched_completion = max(reservation.touched_completion, request.completion)
  keep(call, reservation)
  return DONE
end

-- Charge to windows what the store no longer knows, past any cap; the id's second time finds the first.
local function post_unknown(call, arguments, usage, before)
  local subject = read_subject(call, arguments.key, arguments.model)
  if not subject.model then
    return invalid(format('model %s is not defined for %s; define it, then post again', arguments.model,
      call.organisation))
  end
  local team = subject.key and subject.key.team
  local price, charged = subject.model.price, {tokens = 0, requests = 0, cost_nanos = 0}
  if before then
    price = {before.price.prompt_picos, before.price.cached_picos, before.price.completion_picos,
      before.price.request_picos}
    charged = before.charge
  end
  local state = (charged.tokens > 0 or charged.requests > 0 or charged.cost_nanos > 0) and 'late' or 'posted'
  local charge = {tokens = max(0, usage.prompt + usage.completion - charged.tokens),
    requests = max(0, 1 - charged.requests), cost = max(0, cost_of(price, usage) - charged.cost_nanos)}
  local reservation = make_reservation(call, arguments, team, price, 0, 0)
  local windows, ids = {}, limits_of(call, subject, team)
  for index = 1, #ids do
    if call.counters[ids[index]].kind == WINDOW then windows[#windows + 1] = ids[index] end
  end
  local amounts = post_to_windows(call, windows, charge)
  local added = usage
  if state == 'late' then
    added = {prompt = max(0, usage.prompt - before.usage.prompt), cached = max(0, usage.cached - before.usage.cached),
      completion = max(0, usage.completion - before.usage.completion), source = usage.source}
  end
  record(call, reservation, state, added, charge, amounts, 0)
  end_as(call, reservation, state)
  return settled(state, charge.cost)
end

local function post(call, request)
  local fault = request_fault(request.arguments) or usage_fault(request.usage)
  if fault then return invalid(fault) end
  local reservation = begin(call, request.arguments.reservation)
  if reservation then return settle_known(call, reservation, request.usage) end
  return post_unknown(call, request.arguments, request.usage, request.already_charged)
end

local function sweep_due(call, request)
  call.is_open = true
  return format('{"answer":"Swept","count":%d}', sweep(call, request.count_max))
end

-- Governing ----------------------------------------------------------------------------------------------------

local function load_all_counters(call)
  local fields = redis.call('HGETALL', call.keys[1])
  for index = 1, #fields, 2 do
    if fields[index]:sub(1, 1) ~= '_' then
      local counter = unpack_counter(fields[index + 1])
      roll(counter, call.now)
      call.counters[fields[index]] = counter
    end
  end
end

local function new_counter(limit, now)
  local counter = {kind = KIND_CODES[limit.kind], metric = METRIC_CODES[limit.metric], defined = 1,
    period = limit.period_ms,
    anchor = limit.anchor_ms, cap = limit.cap, held = 0, forgiven = 0}
  if counter.kind == WINDOW then
    counter.used, counter.window = 0, window_of(counter, now)
  else
    counter.level, counter.rolled_at = limit.cap * limit.period_ms, now
  end
  return counter
end

local define, ready -- what they alone need stays in this block: Lua allows 200 local names in a function
do
  local WORDS = {
    {'tokens', 'rate', 1000, 0, 'second'}, {'tokens', 'rate', 60000, 0, 'minute'},
    {'requests', 'strict_rate', 1000, 0, 'second'}, {'requests', 'strict_rate', 60000, 0, 'minute'},
    {false, 'window', 3600000, 0, 'hour'}, {false, 'window', 86400000, 0, 'day'},
    {false, 'window', 604800000, 345600000, 'week'}, {false, 'window', 0, 0, 'month'},
    {false, 'concurrency', 0, 0, 'concurrent'}, {false, 'enqueued', 0, 0, 'enqueued'},
  }

  local function limit_id(limit)
    local word
    for index = 1, #WORDS do
      local metric, kind, period_ms, anchor_ms, name = unpack_table(WORDS[index])
      if (not metric or metric == limit.metric) and kind == limit.kind and period_ms == limit.period_ms
          and anchor_ms == limit.anchor_ms then
        word = name
      end
    end
    if not word then
      word = limit.kind .. '-' .. number(limit.period_ms)
      if limit.kind == 'window' then word = word .. '-' .. number(limit.anchor_ms) end
    end
    local id = limit.owner .. '/' .. limit.metric .. '/' .. word
    if limit.model then id = id .. '/' .. limit.model end
    return id
  end

  local function is_owner(owner, organisation)
    return owner == organisation or owner:sub(1, #organisation + 6) == organisation .. ':team:'
      or owner:sub(1, #organisation + 5) == organisation .. ':key:'
  end

  local function limit_fault(limit, organisation)
    local kind, metric, cap_max = limit.kind, limit.metric, EXACT_MAX
    if not is_owner(limit.owner, organisation) then
      return format('belongs to %s, which is not %s', limit.owner, organisation)
    end
    if limit.owner:find('/', 1, true) then return 'has an owner with a slash' end
    if (kind == 'concurrency') ~= (metric == 'concurrency') then
      return 'counts requests in flight in another kind than concurrency, or the other way round'
    end
    if metric == 'cost' and kind ~= 'window' then return 'counts cost in another kind than a window' end
    if kind == 'window' then
      local anchor_max = max(0, limit.period_ms - 1)
      if not is_whole(limit.period_ms, 0, EXACT_MAX) or not is_whole(limit.anchor_ms, 0, anchor_max) then
        return 'has a window that does not begin within its own period'
      end
    elseif kind == 'concurrency' then
      if limit.period_ms ~= 0 or limit.anchor_ms ~= 0 then return 'counts requests in flight, over a period' end
    elseif kind == 'enqueued' then
      if limit.period_ms ~= 0 or limit.anchor_ms ~= 0 then return 'counts what waits, over a period' end
    else
      if limit.anchor_ms ~= 0 or not is_whole(limit.period_ms, 1, RATE_PERIOD_MAX_MS) then
        return format('needs a period of 1 to %d ms and no anchor', RATE_PERIOD_MAX_MS)
      end
      cap_max = divide(EXACT_MAX, limit.period_ms)
    end
    if not is_whole(limit.cap, 0, cap_max) then
      return format('has a cap of %d; allowed are 0 to %d', limit.cap, cap_max)
    end
  end

  local SHARD_MAX = 1023
  local MODEL_BOUNDS = {{'context', 1, TOKENS_MAX}, {'template_tokens', 0, TOKENS_MAX},
    {'tokens_per_byte_max', 1, 1024}}

  local function bounds_fault(values, bounds)
    for index = 1, #bounds do
      local name, least, most = unpack_table(bounds[index])
      if not is_whole(values[name], least, most) then
        return format('has %s %d; allowed are %d to %d', name, values[name], least, most)
      end
    end
  end

  -- The most limits that any one request can meet: any key with any model that a limit names, or another.
  local function limits_most(limits, keys, organisation)
    local counts, models, most = {}, {[''] = true}, 0
    for index = 1, #limits do
      local owner, model = limits[index].owner, limits[index].model or ''
      counts[owner] = counts[owner] or {}
      counts[owner][model] = (counts[owner][model] or 0) + 1
      models[model] = true
    end
    local function count(owner, model)
      return counts[owner] and (counts[owner][''] or 0) + (model ~= '' and counts[owner][model] or 0) or 0
    end
    for model in pairs_of(models) do
      local own = count(organisation, model)
      most = max(most, own)
      for id, key in pairs_of(keys) do
        local team = key.team and count(organisation .. ':team:' .. key.team, model) or 0
        most = max(most, own + team + count(organisation .. ':key:' .. id, model))
      end
    end
    return most
  end

  local function definitions_fault(definitions, organisation)
    local seen = {}
    for index = 1, #definitions.limits do
      local limit = definitions.limits[index]
      local id = limit_id(limit)
      local fault = limit_fault(limit, organisation) or (seen[id] and 'is defined twice')
      if fault then return format('limit %s %s', id, fault) end
      seen[id] = true
    end
    if not is_whole(definitions.shard, 0, SHARD_MAX) then
      return format('shard is %.0f; allowed are 0 to %.0f', definitions.shard, SHARD_MAX)
    end
    for name, model in pairs_of(definitions.models) do
      if model.name ~= name then return format('model %s calls itself %s', name, model.name) end
      local fault = bounds_fault(model, MODEL_BOUNDS) or bounds_fault(model.price, PRICE_BOUNDS)
      if fault then return format('model %s %s', name, fault) end
    end
    for id, key in pairs_of(definitions.keys) do
      if key.id ~= id then return format('key %s calls itself %s', id, key.id) end
    end
    local most = limits_most(definitions.limits, definitions.keys, organisation)
    if most > LIMITS_MAX then
      return format('%d limits on one request; at most %d are possible', most, LIMITS_MAX)
    end
  end

  -- One text for equal definitions, whatever the order of names and of lists of names.
  local function canonical(value)
    if not is_table(value) then
      if type(value) == 'number' then return number(value) end
      return type(value) == 'string' and encode(value) or tostring(value)
    end
    local parts = {}
    if #value > 0 then
      for index = 1, #value do parts[index] = canonical(value[index]) end
      if type(value[1]) == 'string' then sort(parts, is_before) end
      return '[' .. concat(parts, ',') .. ']'
    end
    for name, each in pairs_of(value) do parts[#parts + 1] = encode(name) .. ':' .. canonical(each) end
    sort(parts, is_before)
    return '{' .. concat(parts, ',') .. '}'
  end

  -- Every counter to now under its old cap, then the new caps. A limit that left keeps its counter, and may return.
  local function redefine_counters(call, limits)
    load_all_counters(call)
    for id, counter in pairs_of(call.counters) do
      counter.defined = 0
      change_counter(call, id)
    end
    for index = 1, #limits do
      local id, limit = limit_id(limits[index]), limits[index]
      local counter = call.counters[id] or new_counter(limit, call.now)
      counter.defined, counter.cap = 1, limit.cap
      if is_bucket(counter) then counter.level = min(counter.level, limit.cap * limit.period_ms) end
      call.counters[id] = counter
      change_counter(call, id)
    end
  end

  -- The fields of the definitions hash, flat.
  local function definition_fields(version, digest, definitions)
    local fields, lists = {'version', number(version), 'digest', digest, 'shard', number(definitions.shard)}, {}
    local function add(name, value)
      fields[#fields + 1], fields[#fields + 2] = name, value
    end
    for id, key in pairs_of(definitions.keys) do
      add('key/' .. id, pack_text({key.team or false, key.verified, key.revoked, key.expires_at_ms,
        key.cost_nanos_max or false, key.macs, key.models or false, key.routes or false}))
    end
    for name, model in pairs_of(definitions.models) do
      local price = model.price
      add('model/' .. name, pack_text({model.context, model.template_tokens, model.tokens_per_byte_max,
        price.prompt_picos, price.cached_picos, price.completion_picos, price.request_picos}))
    end
    sort(definitions.limits, function(one, other) return is_before(limit_id(one), limit_id(other)) end)
    for index = 1, #definitions.limits do
      local limit = definitions.limits[index]
      local list = lists[limit.owner] or {}
      list[#list + 1], list[#list + 2] = limit_id(limit), limit.model or false
      lists[limit.owner] = list
    end
    for owner, list in pairs_of(lists) do add('limits/' .. owner, pack_text(list)) end
    return fields
  end

  function define(call, request)
    local known = redis.call('HMGET', call.keys[4], 'version', 'digest')
    local version, definitions = known[1] and tonumber(known[1]) or 0, request.definitions
    local digest = redis.sha1hex(canonical(definitions))
    if request.version < version or request.version < 1 then
      return refused(format('version %d is older than %d; read the definitions again', request.version, version))
    end
    if request.version == version then
      if digest == known[2] then return DONE end
      return refused(format('version %d is taken by other definitions; use a higher one', version))
    end
    local fault = definitions_fault(definitions, call.organisation)
    if fault then return refused(fault) end
    redefine_counters(call, definitions.limits)
    local fields = definition_fields(request.version, digest, definitions)
    call.is_open = true
    call.definitions, call.policy = fields, definitions.reserve
    return DONE
  end

  function ready(call, request)
    if redis.call('HEXISTS', call.keys[4], 'version') == 0 then
      return refused('nothing is defined yet; define first')
    end
    local epoch = call.epoch or 0
    if request.epoch < epoch then
      return refused(format('epoch %d is below %d, in which admissions run already', request.epoch, epoch))
    end
    if request.restored and request.restored ~= call.restored then
      return refused('the state is not what this rebuild restored: it was lost on the way; restore it again')
    end
    call.is_open, call.new_epoch = true, request.epoch
    return DONE
  end
end

-- Back from the ledger, after define and before ready: windows as their sums, buckets empty, and the ids that ended.
-- `counters`: {limit, metric, kind, period_ms, anchor_ms, window, used} by window limit; `tombstones`: events, by time;
-- `jobs`: one event of each that is open.
-- In pages, each of which may come again: page 0 begins a rebuild, and any other needs those before it, so that a store
-- which forgot on the way, or in which another rebuild began, is refused. Without a page, as an earlier keeper calls, none
-- is counted.

local restore
do
  local ENDED_BY = {posted = 'posted', voided = 'voided', expired = 'expired', late = 'late'}

  -- What the ledger's row of a reservation tells of it. Returns it, and every limit that it falls under.
  local function remembered(call, event)
    local price = event.price
    local reservation = make_reservation(call, {reservation = event.reservation, key = event.key, model = event.model,
      lane = event.lane, job_deadline_ms = event.job_deadline_ms, body_bytes = 0}, event.team,
      {price.prompt_picos, price.cached_picos, price.completion_picos, price.request_picos}, event.tokens_held, 0)
    return reservation, limits_of(call, read_subject(call, event.key, event.model), event.team)
  end

  local function bury(call, event)
    local state = ENDED_BY[event.kind]
    if not state then return end
    local reservation = find_reservation(call, event.reservation)
    if not reservation then
      local ids
      reservation, ids = remembered(call, event)
      for index = 1, #ids do
        if call.counters[ids[index]].kind == WINDOW then reservation.windows[#reservation.windows + 1] = ids[index] end
      end
    end
    if state == 'expired' then
      reservation.charged_prompt, reservation.charged_completion = event.usage.prompt, event.usage.completion
      reservation.charged_requests, reservation.charged_cost = event.charge.requests, event.charge.cost_nanos
    end
    end_as(call, reservation, state)
    reservation.due_ms = max(event.occurred_at_ms + REMEMBER_MS, event.job_deadline_ms)
  end

  -- An open job is queued again. Which of its tokens were prompt is not known: its cost is held at the higher price.
  local function requeue(call, event)
    if event.job_deadline_ms <= call.now or find_reservation(call, event.reservation) then return end
    local reservation, ids = remembered(call, event)
    reservation.cost_held = max(reservation.cost_held, cost_most(reservation.price, 0, event.tokens_held))
    hold_windows(call, reservation, ids)
    enqueue(call, reservation, ids)
    keep(call, reservation)
  end

  -- The pages that are there with this one: of its rebuild alone. Nil if one before it is not.
  local function with_page(call, rebuild, page)
    if page == 0 then return '1 ' .. rebuild end
    local pages, known = match(call.restored, '^(%d+) (.*)$')
    pages = tonumber(pages)
    if known ~= rebuild or pages < page then return nil end
    return number(max(pages, page + 1)) .. ' ' .. rebuild
  end

  function restore(call, request)
    if call.epoch then return refused('the state is not lost: it has a marker or an epoch') end
    if redis.call('HEXISTS', call.keys[4], 'version') == 0 then
      return refused('nothing is defined yet; define first')
    end
    if request.page then
      call.new_restored = with_page(call, request.rebuild, request.page)
      if not call.new_restored then return refused(format('pages before %d are not there; begin again', request.page)) end
    end
    call.is_open, call.now = true, max(call.now, request.clock_ms)
    load_all_counters(call)
    for id, counter in pairs_of(call.counters) do
      if is_bucket(counter) then
        counter.level, counter.rolled_at = 0, call.now
        change_counter(call, id)
      end
    end
    for index = 1, #request.counters do
      local given = request.counters[index]
      local id = given.limit
      if not call.counters[id] then
        given.cap = 0
        call.counters[id] = new_counter(given, call.now)
        call.counters[id].defined = 0
      end
      local counter = change_counter(call, id)
      counter.used, counter.window = given.used, given.window
    end
    for index = 1, #request.tombstones do bury(call, request.tombstones[index]) end
    for index = 1, #request.jobs do requeue(call, request.jobs[index]) end
    return DONE
  end
end

-- Reading ------------------------------------------------------------------------------------------------------

local inspect, look
do
  local KINDS = {'window', 'rate', 'strict_rate', 'concurrency', 'enqueued'}
  local METRICS = {'tokens', 'requests', 'cost', 'concurrency'}

  local function standing_of(call, id, counter)
    local cap = counter.defined == 1 and counter.cap or 0
    return format('[%s,"%s","%s",%d,%d,%d,%d,%d,%d]', quote(id), METRICS[counter.metric], KINDS[counter.kind],
      cap, counter.used or 0, counter.held, available(counter, cap), counter.window or 0,
      resets_in_ms(counter, call.now))
  end

  local function hold_of(call, reservation)
    local amounts, ids = {}, {}
    for index = 1, #reservation.windows do ids[index] = reservation.windows[index] end
    for index = 1, #reservation.flight do ids[#ids + 1] = reservation.flight[index] end
    sort(ids, is_before)
    for index = 1, #ids do
      amounts[index] = format('[%s,%d]', quote(ids[index]), held_of(reservation, call.counters[ids[index]].metric))
    end
    return format('[%s,%s,%s,%s,%s,%d,[%s],%d,%s]', quote(reservation.id), quote(reservation.team),
      quote(reservation.key), quote(reservation.model), quote(reservation.lane), reservation.tokens_held,
      concat(amounts, ','), reservation.due_ms, truth(reservation.running))
  end

  -- One page, or all. A page takes so long as it is large; all of them, as there are.
  local function open_ids(call, request)
    local page, after_ms, ids, offset = request.holds_max, max(0, request.after_ms or 0), {}, 0
    if not page then
      ids = redis.call('ZRANGEBYSCORE', call.keys[3], '0', '+inf')
      sort(ids, is_before)
      return ids
    end
    page = min(page, PAGE_MAX)
    while #ids < page do
      local found = redis.call('ZRANGEBYSCORE', call.keys[3], number(after_ms), '+inf', 'WITHSCORES', 'LIMIT', offset, page)
      for index = 1, #found, 2 do
        local is_new = tonumber(found[index + 1]) > after_ms or is_before(request.after or '', found[index])
        if is_new and #ids < page then ids[#ids + 1] = found[index] end
      end
      if #found < 2 * page then break end
      offset = offset + page
    end
    return ids
  end

  function inspect(call, request)
    load_all_counters(call)
    local ids, limits, holds, open = {}, {}, {}, {}
    for id, counter in pairs_of(call.counters) do
      if counter.defined == 1 or counter.held ~= 0 or (counter.used or 0) ~= 0 then ids[#ids + 1] = id end
    end
    sort(ids, is_before)
    for index = 1, #ids do limits[index] = standing_of(call, ids[index], call.counters[ids[index]]) end
    local due = open_ids(call, request)
    for index = 1, #due do open[index] = hold_of(call, find_reservation(call, due[index])) end
    return format('{"answer":"Inspected","now_ms":%d,"epoch":%d,"limits":[%s],"holds":[%s]}', call.now, call.epoch,
      concat(limits, ','), concat(open, ','))
  end

  function look(call, request)
    local found = find_reservation(call, request.reservation)
    if not found then return UNKNOWN end
    return format('{"answer":"Seen","state":"%s","model":%s,"key":%s,"lane":%s,"running":%s,"started":%s,'
      .. '"published":%s,"cancelled":%s,"deadline_ms":%d,"job_deadline_ms":%d,"touched_prompt":%d,"touched_completion":%d}',
      found.state, quote(found.model), quote(found.key), quote(found.lane), truth(found.running),
      truth(found.started or found.lane == 'realtime'), truth(found.published), truth(found.cancelled),
      found.state == 'open' and found.due_ms or 0, found.job_deadline_ms, found.touched_prompt,
      found.touched_completion)
  end
end

-- The calls ----------------------------------------------------------------------------------------------------

-- What may pass as a call: `read_argument(name, text, keys)` returns the argument, or nil and what the caller got wrong.
-- A function of its own, since Lua allows 200 local names in one.
local read_argument = (function()
  -- The names that a table must have, by their type. A `choice` is one of these texts, a `list` has elements of a shape,
  -- a `map` has them by name, `texts` are lists of texts or null, as is each `nullable`. `check` decides what is left.
  local LANES, SOURCES = {realtime = true, queue = true}, {upstream = true, ['local'] = true, none = true}
  local REQUEST = {
    string = {'reservation', 'nonce', 'fingerprint', 'key', 'key_mac', 'route', 'model'}, choice = {lane = LANES},
    number = {'body_bytes', 'prompts', 'outputs_bound', 'job_deadline_ms'}, nullable = {prompt_tokens = 'number'},
  }
  local USAGE = {number = {'prompt', 'completion', 'cached'}, choice = {source = SOURCES}}
  local PRICE = {number = {'prompt_picos', 'cached_picos', 'completion_picos', 'request_picos'}}
  local CHARGE = {number = {'tokens', 'requests', 'cost_nanos'}}
  local AMOUNT = {string = {'limit'}, number = {'window', 'amount'}}
  local EVENT_KINDS = {reserved = true, acquired = true, posted = true, voided = true, expired = true, late = true}
  local EVENT = {
    string = {'reservation', 'organisation', 'key', 'model', 'lane', 'reason'}, choice = {kind = EVENT_KINDS},
    number = {'occurred_at_ms', 'tokens_held', 'job_deadline_ms'}, nullable = {team = 'string'},
    table = {'price', 'charge', 'usage'}, list = {amounts = AMOUNT},
    check = function(event)
      local charge, usage = event.charge, event.usage
      local is_event = is_whole(event.occurred_at_ms, 0, EXACT_MAX) and is_whole(event.job_deadline_ms, 0, EXACT_MAX)
        and is_whole(event.tokens_held, 0, TOKENS_MAX) and is_whole(charge.tokens, 0, TOKENS_MAX)
        and is_whole(charge.requests, 0, 1) and is_whole(charge.cost_nanos, 0, EXACT_MAX)
        and is_whole(usage.prompt, 0, TOKENS_MAX) and is_whole(usage.completion, 0, TOKENS_MAX)
      if not is_event or not are_prices(event.price) then return 'has numbers that no event has' end
    end,
  }
  local MAC = {string = {1}, number = {2}, check = function(mac) if mac[3] ~= nil then return '3 is one too many' end end}
  local LIMIT = {
    string = {'owner'}, choice = {kind = KIND_CODES, metric = METRIC_CODES}, nullable = {model = 'string'},
    number = {'cap', 'period_ms', 'anchor_ms'},
  }
  local MODEL = {
    string = {'name'}, number = {'context', 'template_tokens', 'tokens_per_byte_max'}, table = {'price'},
  }
  local KEY = {
    string = {'id'}, boolean = {'verified', 'revoked'}, number = {'expires_at_ms'}, list = {macs = MAC},
    nullable = {team = 'string', cost_nanos_max = 'number'}, texts = {'models', 'routes'},
  }
  local DEFINITIONS = {
    list = {limits = LIMIT}, map = {keys = KEY, models = MODEL}, number = {'shard'},
    choice = {reserve = {strict = true, learned = true}, overrun = {stop = true, debt = true}},
  }
  local SUM = {
    string = {'limit'}, choice = {kind = {window = true}, metric = METRIC_CODES},
    number = {'period_ms', 'anchor_ms', 'window', 'used'},
    check = function(sum)
      local is_sum = is_whole(sum.period_ms, 0, EXACT_MAX) and is_whole(sum.anchor_ms, 0, EXACT_MAX)
        and is_whole(sum.window, -EXACT_MAX, EXACT_MAX) and is_whole(sum.used, 0, EXACT_MAX)
      if not is_sum then return 'has numbers that no sum has' end
    end,
  }
  local CALLER, ONE = {string = {'organisation'}, number = {'caller_now_ms'}}, {string = {'reservation'}}
  local form_fault
  local REPEATED = {string = REQUEST.string, choice = REQUEST.choice, number = REQUEST.number,
    nullable = REQUEST.nullable, check = function(arguments) return form_fault(arguments, CALLER) end}
  local SHAPES = {
    reserve = {REQUEST}, acquire = {REQUEST, {number = {'epoch'}}}, settle = {ONE, {table = {'usage'}}},
    void = {ONE, {string = {'reason'}}}, touch = {ONE, {number = {'prompt', 'completion'}}}, published = {ONE},
    cancel = {ONE}, extend = {ONE, {number = {'total_tokens'}}}, sweep = {{number = {'count_max'}}},
    define = {{number = {'version'}, table = {'definitions'}}}, ready = {{number = {'epoch'}, nullable = {restored = 'string'}}},
    reassert = {{table = {'arguments'}, boolean = {'acquired'}, number = {'prompt', 'completion', 'renewed_at_ms'}}},
    post = {{table = {'arguments', 'usage'}, nullable = {already_charged = 'table'}}}, look = {ONE},
    inspect = {{nullable = {holds_max = 'number', after_ms = 'number', after = 'string'}}},
    restore = {{number = {'clock_ms'}, list = {counters = SUM, tombstones = EVENT, jobs = EVENT},
      nullable = {rebuild = 'string', page = 'number'}, check = function(argument)
      local page, rebuild = argument.page, argument.rebuild
      if not is_whole(argument.clock_ms, 0, EXACT_MAX) then return 'clock_ms is no time' end
      if not page ~= not rebuild then return 'page and rebuild come together' end
      if page and not is_whole(page, 0, EXACT_MAX) then return 'page is none' end
    end}},
  }
  local INSIDE = {usage = USAGE, arguments = REPEATED, already_charged = EVENT, price = PRICE, charge = CHARGE,
    definitions = DEFINITIONS}

  -- Beyond 2^53 a number in the text is no longer the one that was meant.
  local function value_fault(name, value, wanted)
    local found = type(value)
    if value == nil or value == null then return name .. ' is missing' end
    if found ~= wanted then return format('%s is a %s, not a %s', name, found, wanted) end
    if wanted == 'number' and not (value < FORGET_OFFSET and value > -FORGET_OFFSET) then
      return name .. ' is beyond 2^53'
    end
    if wanted == 'number' and value ~= floor(value) then return name .. ' is no integer' end
    local fault = wanted == 'table' and INSIDE[name] and form_fault(value, INSIDE[name])
    return fault and name .. '.' .. fault or nil
  end

  local function list_fault(name, list, shape)
    if not is_table(list) then return value_fault(name, list, 'table') end
    local count = 0
    for _ in pairs_of(list) do count = count + 1 end
    for index = 1, count do
      local element = list[index]
      if not is_table(element) then return format('%s[%d] is a %s, not a table', name, index, type(element)) end
      local fault = form_fault(element, shape)
      if fault then return format('%s[%d].%s', name, index, fault) end
    end
  end

  local function map_fault(name, map, shape)
    if not is_table(map) then return value_fault(name, map, 'table') end
    for each, element in pairs_of(map) do
      if type(each) ~= 'string' or not is_table(element) then return name .. ' is no table of tables by name' end
      local fault = form_fault(element, shape)
      if fault then return format('%s.%s.%s', name, each, fault) end
    end
  end

  local function texts_fault(name, texts)
    local count = 0
    for _ in pairs_of(texts) do count = count + 1 end
    for index = 1, count do
      if type(texts[index]) ~= 'string' then return name .. ' is no list of texts' end
    end
  end

  local READERS = {
    nullable = function(argument, name, wanted)
      if argument[name] == null then argument[name] = nil end
      if argument[name] ~= nil then return value_fault(name, argument[name], wanted) end
    end,
    choice = function(argument, name, choices)
      local value = argument[name]
      if type(value) ~= 'string' then return value_fault(name, value, 'string') end
      if not choices[value] then return format('%s is %s, which is none of those possible', name, quote(value)) end
    end,
    list = function(argument, name, shape) return list_fault(name, argument[name], shape) end,
    map = function(argument, name, shape) return map_fault(name, argument[name], shape) end,
    texts = function(argument, _, name)
      if argument[name] == null then argument[name] = nil end
      local value = argument[name]
      if value ~= nil then return value_fault(name, value, 'table') or texts_fault(name, value) end
    end,
  }

  -- Replaces null by nil on the way.
  function form_fault(argument, shape)
    for wanted, names in pairs_of(shape) do
      local reader = READERS[wanted]
      if reader then
        for name, what in pairs_of(names) do
          local fault = reader(argument, name, what)
          if fault then return fault end
        end
      elseif wanted ~= 'check' then
        for index = 1, #names do
          local name = names[index]
          local value = argument[name]
          if type(value) ~= wanted or wanted == 'table'
              or wanted == 'number' and not (value == floor(value) and value < FORGET_OFFSET and value > -FORGET_OFFSET)
          then
            local fault = value_fault(name, value, wanted)
            if fault then return fault end
          end
        end
      end
    end
    return shape.check and shape.check(argument)
  end

  -- Of definitions, what no shape names: null is nil there too, so that what a caller leaves out and what it nulls is one.
  local function without_null(value)
    for name, each in pairs_of(value) do
      if each == null then value[name] = nil elseif is_table(each) then without_null(each) end
    end
  end

  -- Whether a text is UTF-8 without a NUL, also an escaped one: nobody could read the one again, no database keep the other.
  local function is_utf8(text)
    local rest = text:gsub('[\194-\223][\128-\191]', '.'):gsub('\224[\160-\191][\128-\191]', '.')
      :gsub('\237[\128-\159][\128-\191]', '.'):gsub('[\225-\236\238\239][\128-\191][\128-\191]', '.')
      :gsub('\240[\144-\191][\128-\191][\128-\191]', '.')
      :gsub('[\241-\243][\128-\191][\128-\191][\128-\191]', '.')
      :gsub('\244[\128-\143][\128-\191][\128-\191]', '.')
    return not find(rest, '[%z\128-\255]')
  end

  -- The keys of an organisation, by its partition's prefix and its name: `{q40}:acme`.
  local keys_in = memo_of(function(own)
    return {own .. ':counters', own .. ':reservations', own .. ':deadlines', own .. ':definitions',
      match(own, '^{q%d+}:') .. 'outbox'}
  end)

  local function are_keys_of(organisation, keys)
    local slot = match(keys[1] or '', '^{q%d+}:')
    if #keys ~= 5 or not slot then return false end
    local own = keys_in(slot .. organisation)
    return keys[1] == own[1] and keys[2] == own[2] and keys[3] == own[3] and keys[4] == own[4] and keys[5] == own[5]
  end

  return function(name, text, keys)
    local is_json, argument = pcall(decode, text)
    if not is_json or not is_table(argument) then return nil, 'the argument is no JSON object' end
    if find(text, '[%z\128-\255]') and not is_utf8(text) or find(text, '\\u0000', 1, true) then
      return nil, 'the argument is no UTF-8 without NUL'
    end
    local fault, shapes = form_fault(argument, CALLER), SHAPES[name]
    for index = 1, #shapes do fault = fault or form_fault(argument, shapes[index]) end
    if fault then return nil, name .. ': ' .. fault end
    if not are_keys_of(argument.organisation, keys) then
      return nil, 'five keys of the organisation in the argument are wanted: see the library'
    end
    if name == 'define' then without_null(argument) end
    return argument
  end
end)()

-- Read the argument, carry out the operation, then write what it changed.
local function answer(name, operation, keys, arguments)
  if not floor then bind() end
  local argument, fault = read_argument(name, arguments[1] or '', keys)
  if fault then return redis.error_reply('PENSTOCK ' .. fault) end
  local call = open_call(keys, argument)
  if not call.epoch and name ~= 'define' and name ~= 'ready' and name ~= 'restore' then return NOT_READY end
  call.time = time_ms()
  call.now = max(call.clock, min(call.time, argument.caller_now_ms + SKEW_MS))
  local reply = operation(call, argument)
  if call.is_open then commit(call) end
  return reply
end

-- Name, operation, and whether a Redis at its maxmemory still carries it out: what frees, posts or ends must go on.
local OPERATIONS = {
  {'reserve', reserve, false}, {'settle', settle, true}, {'void', void, true}, {'touch', touch, true},
  {'acquire', acquire, false}, {'published', published, true}, {'cancel', cancel, true}, {'extend', extend, false},
  {'sweep', sweep_due, true}, {'define', define, false}, {'ready', ready, false}, {'reassert', reassert, false},
  {'post', post, true}, {'inspect', inspect, true}, {'look', look, true},
  {'restore', restore, false},
}

for index = 1, #OPERATIONS do
  local name, operation, may_grow = OPERATIONS[index][1], OPERATIONS[index][2], OPERATIONS[index][3]
  redis.register_function({
    function_name = 'penstock_' .. name,
    callback = function(keys, arguments) return answer(name, operation, keys, arguments) end,
    flags = may_grow and {'allow-oom'} or {},
  })
end

redis.register_function({
  function_name = 'penstock_version',
  callback = function() return VERSION end,
  flags = {'no-writes', 'allow-stale', 'allow-oom'},
})

CREATE TABLE results (
    job text PRIMARY KEY, organisation text NOT NULL, model text NOT NULL, status text NOT NULL, body jsonb NOT NULL,
    prompt_tokens bigint NOT NULL, completion_tokens bigint NOT NULL, finished_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE ledger (
    job text PRIMARY KEY, organisation text NOT NULL, model text NOT NULL, prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL, cost_nanos bigint NOT NULL, occurred_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON ledger (organisation, occurred_at);

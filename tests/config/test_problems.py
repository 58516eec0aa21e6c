"""Whoever fixes a file is told everything at once: where, what was found, what is wanted, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import examine, examine_text, load
from penstock.config.describing import schema
from penstock.config.explaining import explain
from penstock.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / "penstock.yaml"

SOUND = """
models:
  chat-small:
    upstream: http://vllm-small:8000
    context: 8192
    max_tokens: 2048
    price: {input: 0.15, output: 0.60}
plans:
  team: {limits: [200k tokens/minute]}
organisations:
  acme: {plan: team}
"""

TEN_MISTAKES = """
models:
  chat-small:
    upstream: htp://vllm:8000
    context: 8192
    max_tokens: 9000
    max_token: 3
  qwen2.5:7b:
    upstream: {url: "https://x.example", credential: sk-canary}
    context: 8k
    price: {input: 0.0000001}
plans:
  team:
    limits: [200k tokens, 600 requests/minute, 10 requests/minute]
    reserve: strickt
organisations:
  Acme: {plan: team}
  beta: {plan: teem}
"""


def said(text: str) -> list[str]:
    examined = examine_text(text)
    assert examined.configuration is None or not examined.problems
    return [str(problem) for problem in examined.problems]


def changed(old: str, new: str) -> list[str]:
    assert old in SOUND
    return said(SOUND.replace(old, new))


def test_ten_mistakes_give_ten_messages_in_the_order_of_the_file() -> None:
    assert said(TEN_MISTAKES) == [
        "models.chat-small.upstream: found the scheme 'htp', wanted http:// or https://; "
        "write it in front of host:port",
        "models.chat-small.max_tokens: 9000 is more than context (8192); lower it",
        "models.chat-small.max_token: unknown key; did you mean `max_tokens`?",
        'models."qwen2.5:7b".upstream.credential: found text; a secret is never a value in this file; '
        "write `{file: PATH}`, or `{secret: NAME, key: KEY}` "
        "for a Secret of Kubernetes, or `{env: NAME}` for an environment variable",
        'models."qwen2.5:7b".price.input: found 0.0000001, which has more than 6 decimals; '
        "round it, for sums stay exact",
        "plans.team.limits[0]: found '200k tokens' without a period, wanted one of second, minute, hour, day, week, "
        "month; write `200k tokens/minute` or `200k tokens/month`",
        "plans.team.limits[2]: 10 requests/minute limits the same as another (limits[1] is 600 requests/minute); "
        "keep one",
        "plans.team.reserve: found 'strickt', wanted strict or learned; did you mean `strict`?",
        "organisations.Acme: found the name 'Acme', wanted small letters, digits and hyphens, at most 63; rename it",
        "organisations.beta.plan: found 'teem', which is no plan; did you mean `team`?",
    ]


def test_each_problem_names_its_line() -> None:
    places = [problem.place for problem in examine_text(TEN_MISTAKES, "f.yaml").problems]
    assert places == [f"f.yaml:{line}" for line in (4, 6, 7, 9, 11, 14, 14, 15, 17, 18)]


def test_load_raises_with_every_problem_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(TEN_MISTAKES, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load([path])
    assert len(caught.value.problems) == 10
    assert caught.value.problems[1].endswith(f"lower it ({path}:6)")


def test_the_sound_file_and_the_example_have_neither_problems_nor_warnings() -> None:
    for examined in (examine_text(SOUND), examine([EXAMPLE])):
        assert (examined.problems, examined.warnings) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("context: 8192", "context: [8192]", "found a list, wanted a whole number above 0"),
        ("context: 8192", "context: 0", "found 0, wanted 1 to 2147483648"),
        ("context: 8192", "context: -8192", "found -8192, wanted 1 or more"),
        ("context: 8192", "context: true", "found a boolean, wanted a whole number"),
        ("context: 8192", "context: 8192.5", "wanted a whole number; round it"),
        ("    context: 8192\n", "", "context: missing, wanted a whole number above 0 such as `8192` or `200k`"),
        ("    max_tokens: 2048\n", "    kind: kserve\n", "found 'kserve', wanted openai or kserve-v2; did you mean"),
        ("    max_tokens: 2048\n", "    kind: kserve-v2\n    units: pixel\n", "found 'pixel', wanted request, byte"),
        ("    max_tokens: 2048\n", "    units: byte\n", "units: found beside a model that speaks openai"),
        ("context: 8192\n    max_tokens: 2048", "context: 512", "its default 1024 is more than context (512); set it"),
        ("http://vllm-small:8000", "vllm-small", "found an address without a scheme"),
        ("http://vllm-small:8000", "http://", "found no host after http://"),
        ("http://vllm-small:8000", "http://x:99999", "found no valid address"),
        ("http://vllm-small:8000", "http://x/v1", "ends in /v1, which is added; write `http://x`"),
        ("http://vllm-small:8000", "http://x?a=b", "found a query or fragment"),
        ("http://vllm-small:8000", "[]", "found an empty list, wanted at least one upstream"),
        ("http://vllm-small:8000", "[8]", "upstream[0]: found a number, wanted a URL"),
        ("http://vllm-small:8000", "[local, http://x]", "found `local` beside other upstreams"),
        ("http://vllm-small:8000\n", "local\n    kind: kserve-v2\n", "the bundled model speaks openai"),
        ("http://vllm-small:8000\n    context: 8192", "local\n    context: 9000", "more than the bundled model reads"),
        ("{input: 0.15, output: 0.60}", "cheap", "found text, wanted a mapping; write keys below it: input"),
        ("{input: 0.15, output: 0.60}", "{input: -1}", "found '-1', wanted dollars"),
        ("{input: 0.15, output: 0.60}", "{output: 3000}", "found 3000, wanted at most 1073.741824 usd; check the unit"),
        ("{input: 0.15, output: 0.60}", "{request: 2}", "found 2, wanted at most 1.099511627776 usd"),
        ("{input: 0.15, output: 0.60}", "{}\n    tokens_per_byte_max: 2k", "found 2000, wanted 1 to 1024"),
        ("{input: 0.15, output: 0.60}", "{}\n    template_tokens: 9k", "9000 leaves nothing of context (8192)"),
        ("{input: 0.15, output: 0.60}", "{}\n    bytes_per_token: 0", "wanted a number above 0"),
        ("{input: 0.15, output: 0.60}", "{}\n    timeouts: {total: 0s}", "wanted more than 0"),
        ("{input: 0.15, output: 0.60}", "{}\n    timeouts: {total: 60}", "without a unit"),
        ("{input: 0.15, output: 0.60}", "{}\n    upstream_model: 5", "found a number, wanted text; quote it"),
        ("chat-small:\n", "'chat small':\n", "found the name 'chat small'"),
        ("[200k tokens/minute]", "200k tokens/minute", "found text, wanted a list; write `[...]` around it"),
        ("[200k tokens/minute]", "[5]", "wanted a limit"),
        ("plan: team", "plan: team, limits: [1k tokens/minute]", "(plan team has 200k tokens/minute); keep one"),
        ("plan: team", "plan: team, models: {chat-smal: {limits: []}}", "did you mean `chat-small`?"),
        ("plan: team", "plan: team, teams: {A: {}}", "found the name 'A'"),
        ("plan: team", "managed_by: file", "plan: missing, wanted text"),
        ("organisations:", "server: {port: 8081}\norganisations:", "8081 is the public port too"),
        ("organisations:", "server: {port: 70000}\norganisations:", "found 70000, wanted 0 to 65535"),
        ("organisations:", "auth: {pepper_previous: {env: A}}\norganisations:", "found it without pepper"),
        ("organisations:", "auth: {pepper: {}}\norganisations:", "found 0 references, wanted exactly one"),
        ("organisations:", "auth: {pepper: {env: A, file: b}}\norganisations:", "found 2 references"),
        (
            "organisations:",
            "auth: {pepper: {vault: b}}\norganisations:",
            "unknown key, wanted env, file, secret or key",
        ),
        ("organisations:", "auth: {pepper: {env: 5}}\norganisations:", "found a number, wanted text"),
        ("    upstream: http://vllm-small:8000\n", "", "or `deploy: ...`"),
        ("upstream: http://vllm-small:8000", "deploy: {}", "deploy.image: missing, wanted text"),
        ("    max_tokens: 2048\n", "    replicas: {min: 9, max: 3}\n", "9 is more than max (3); lower it"),
        ("    max_tokens: 2048\n", "    replicas: {min: 11}\n", "11 is more than max (10); lower it"),
        ("    max_tokens: 2048\n", "    running_usage: 1\n", "found a number, wanted true or false"),
        (
            "    max_tokens: 2048\n",
            "    max_tokens: 2048\n    capacity: {tokens_per_second: 1000, concurrency: 64}\n",
            "1m can be met by no number of replicas: one output of max_tokens (2048) alone takes",
        ),
        (
            "    max_tokens: 2048\n",
            "    capacity: {tokens_per_second: 2500, concurrency: 64, cold_start: 90s}\n    replicas: {min: 0}\n",
            "a replica needs 90s to start (capacity.cold_start), from none at all; raise it, or keep one replica",
        ),
        (
            "    max_tokens: 2048\n",
            "    deploy: {image: vllm}\n    scale_target: {name: m}\n",
            "found beside `deploy`, whose server is scaled already; remove one of the two",
        ),
        ("organisations:", "kubernetes: {ingres: {host: a}}\norganisations:", "did you mean `ingress`?"),
        ("organisations:", "kubernetes: {ingress: {}}\norganisations:", "kubernetes.ingress.host: missing"),
        ("organisations:", "auth: {pepper: {secret: a}}\norganisations:", "missing or no key of a Secret"),
        ("organisations:", "auth: {pepper: {file: a, key: b}}\norganisations:", "has no use beside file"),
        ("organisations:", "auth: {pepper: {secret: A_b, key: c}}\norganisations:", "found no name of a Secret"),
        ("organisations:", "organisation:", "unknown key; did you mean `organisations`?"),
    ],
)
def test_one_mistake_gives_one_message(old: str, new: str, message: str) -> None:
    (problem,) = changed(old, new)
    assert message in problem


def test_stores_are_checked_one_by_one() -> None:
    stores = "stores: {redis: {url: 'amqp://q'}, postgresql: {url: 'mysql://q'}}\n"
    assert said(SOUND + stores) == [
        "stores.postgresql.url: found the scheme 'mysql', wanted redis:// or rediss:// or redis+sentinel:// or "
        "rediss+sentinel:// or redis+cluster:// or rediss+cluster:// or postgresql:// or amqp:// or amqps://; "
        "write it in front of host:port",
        "stores.rabbitmq: missing, wanted a mapping; write `rabbitmq: ...`",
        "stores.redis.url: found amqp://, wanted redis:// or rediss:// or redis+sentinel:// or rediss+sentinel:// or "
        "redis+cluster:// or rediss+cluster://; check which service this is",
    ]


def test_what_lies_on_a_bound_is_allowed() -> None:
    for old, new in (
        ("max_tokens: 2048", "max_tokens: 8192"),
        ("max_tokens: 2048", "template_tokens: 8191"),
        ("context: 8192", "context: 2147483648"),
        ("max_tokens: 2048", "max_tokens: 1"),
        ("max_tokens: 2048", "bytes_per_token: 0.001"),
        ("max_tokens: 2048", "timeouts: {total: 60s}"),
        ("http://vllm-small:8000", "{url: 'http://h', credential: {file: /run/secrets/a-b}}"),
    ):
        assert changed(old, new) == []
    assert "8192 leaves nothing of context (8192)" in changed("max_tokens: 2048", "template_tokens: 8192")[0]
    assert warned(SOUND.replace("max_tokens: 2048", "timeouts: {total: 60s}")) == [], "as long as the longest other"


def test_a_file_that_is_not_there_is_the_only_problem_of_nothing_and_one_of_several(tmp_path: Path) -> None:
    assert len(examine([tmp_path / "none.yaml"]).problems) == 1
    path = tmp_path / "p.yaml"
    path.write_text("plans: {p: {}, p: {}}\n", encoding="utf-8")
    assert [str(problem).split(":")[0] for problem in examine([path]).problems] == ["plans.p", "models"]


def test_positions_count_the_limits_that_are_wrong_too() -> None:
    assert [problem.split(":")[0] for problem in changed("[200k", "[x, 1 concurrent, y, 2 concurrent, 200k")] == [
        "plans.team.limits[0]",
        "plans.team.limits[2]",
        "plans.team.limits[3]",
    ]


def test_an_empty_file_wants_a_model() -> None:
    (problem,) = said("")
    assert problem.startswith("models: missing, wanted at least one model")


def test_more_than_32_limits_that_can_meet_are_refused() -> None:
    own = [f"1M tokens/{hours} hours" for hours in range(1, 31)]
    team = "teams: {a: {limits: [1M tokens/70 hours]}, b: {limits: [1M tokens/71 hours]}}"
    acme = f"acme: {{plan: team, limits: [{', '.join(own)}], {team}}}"
    assert changed("acme: {plan: team}", acme) == [], "31 of the organisation, 1 of one team"
    (problem,) = changed("acme: {plan: team}", acme.replace("70 hours]", "70 hours, 1 concurrent]"))
    assert "33 limits can meet on one request, wanted at most 32" in problem


@pytest.mark.parametrize(
    "hidden",
    [
        "models: {m: {context: 900, max_tokens: 1, upstream: {url: 'https://u:canary@h'}}}",
        "models: {m: {context: 900, max_tokens: 1, upstream: 'htps://u:canary@h'}}",
        "models: {m: {context: 900, max_tokens: 1, upstream: 'https://h/?key=canary'}}",
        "models: {m: {context: 900, max_tokens: 1, upstream: {url: 'https://h', credential: canary}}}",
        "models: {m: {context: 900, max_tokens: 1, upstream: {url: 'https://h', credential: {env: sk-canary}}}}",
        "models: {m: {context: 900, max_tokens: 1, upstream: {url: 'https://h', credential: [canary]}}}",
        "auth: {pepper: canary}",
        "auth: canary",
        "stores: {redis: {url: 'redis://:canary@h'}}",
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_never_repeated(hidden: str) -> None:
    problems = said(hidden)
    assert problems
    assert "canary" not in "".join(problems)


def warned(text: str) -> list[str]:
    examined = examine_text(text)
    assert examined.problems == ()
    return [str(warning) for warning in examined.warnings]


def test_a_limit_that_a_full_request_exceeds_is_a_warning() -> None:
    assert warned(SOUND.replace("200k", "10_303")) == [
        "plans.team.limits[0]: a full request of chat-small holds up to 10_304 tokens, more than "
        "10_303 tokens/minute ever admits; raise the limit, or lower context or max_tokens"
    ]
    assert warned(SOUND.replace("200k", "10_304")) == [], "8,192 of context, 64 of template, 2,048 of output"


def test_a_budget_that_one_full_request_exceeds_is_a_warning() -> None:
    costs = "a full request of chat-small costs up to 0.0024672 usd"  # 8,256 x 0.15 + 2,048 x 0.60 per million
    (warning,) = warned(SOUND.replace("200k tokens/minute", "0.0024671 usd/day"))
    assert costs in warning
    assert warned(SOUND.replace("200k tokens/minute", "0.0024672 usd/day")) == []


def test_what_has_no_effect_is_a_warning() -> None:
    text = SOUND.replace("price: {input: 0.15, output: 0.60}", "timeouts: {total: 5s}")
    text = text.replace("team: {limits: [200k tokens/minute]}", "team: {limits: [5 usd/day]}\n  idle: {}\n  free: {}")
    text += "  beta: {plan: free}\n  gamma: {plan: team, teams: {a: {limits: [5 usd/day]}}}\n"
    assert [warning.split(";")[0] for warning in warned(text)] == [
        "models.chat-small.price: is 0, so no limit in usd bounds this model",
        "models.chat-small.timeouts.total: is below another bound, which it cuts off",
        "plans.idle: no organisation has this plan",
        "organisations.beta: nothing limits it",
        "organisations.gamma.teams.a.limits[0]: gamma:team:a may use 5 usd per day, but gamma as a whole only 5 usd",
    ]


def test_a_file_without_organisations_is_a_warning() -> None:
    assert "organisations: there is none, so no request can be served; add one" in warned(SOUND.split("organis")[0])


KEYS = sorted(
    {key for struct in schema()["$defs"].values() for key in struct["properties"]} | set(schema()["properties"])
)
scalars = st.sampled_from(
    [None, True, 0, 1, -1, 8192, 0.15, 1e300, "", "local", "10s", "8k", "http://h", "team", "1k tokens/day"]
)
trees = st.recursive(
    scalars | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), below),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(sorted(schema()["properties"])), trees))
def test_any_file_is_understood_or_has_problems_and_never_breaks_the_check(values: dict[str, object]) -> None:
    examined = examine_text(yaml.safe_dump(values))
    assert (examined.configuration is None) == bool(examined.problems)
    assert all(str(problem) for problem in examined.problems)
    if examined.configuration is not None:
        explain(examined.configuration)


def test_what_a_section_leaves_out_is_as_if_the_section_were_not_there() -> None:
    configuration = examine_text(SOUND + "kubernetes: {api: {replicas: {max: 20}}}\n").configuration
    assert configuration is not None
    assert (configuration.kubernetes.api.replicas.min, configuration.kubernetes.api.replicas.max) == (2, 20)


def test_a_secret_of_kubernetes_is_read_where_the_chart_mounts_it() -> None:
    configuration = examine_text(SOUND + "auth: {pepper: {secret: penstock-auth, key: pepper}}\n").configuration
    assert configuration is not None
    assert configuration.auth.pepper is not None
    assert configuration.auth.pepper.file == "/run/penstock/secrets/penstock-auth/pepper"


def test_a_model_that_the_chart_deploys_needs_no_upstream() -> None:
    text = SOUND.replace("upstream: http://vllm-small:8000", "deploy: {image: 'vllm/vllm-openai:v0.11.0', gpu: 1}")
    assert said(text) == []

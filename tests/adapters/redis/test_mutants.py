"""The maker of the library's mutants breaks what it says it breaks, and the reviewed list names mutants that exist."""

from __future__ import annotations

from penstock.adapters.redis.library import SOURCE
from tests.adapters.redis.lua_sites import each_broken, sites_of
from tests.adapters.redis.mutants import EXPLAINED, all_mutants
from tests.quota.mutants import explained

SAMPLE = """
local function f(a, b) -- a == b in a comment
  local fresh, text = a <= b, 'a < b'
  if a ~= b and #b > 0 then a.x = 1 end
  for index = 1, #b do keep(a, b[index]) end
  b[1], b[2] = b[2], b[1]
  return function(c) c.y = (a >= c) and {x = c == a, 1} or nil end
end
"""


def test_each_comparison_and_each_write_of_the_library_is_broken_once() -> None:
    found = [(function, mutation) for _, function, mutation, _ in each_broken(SAMPLE)]
    assert {function for function, _ in found} == {"f"}
    assert [mutation for _, mutation in found] == [
        "local fresh, text = a <= b, 'a < b'  ->  local fresh, text = a < b, 'a < b'",
        "if a ~= b and #b > 0 then a.x = 1 end  ->  if a == b and #b > 0 then a.x = 1 end",
        "if a ~= b and #b > 0 then a.x = 1 end  ->  if a ~= b and #b >= 0 then a.x = 1 end",
        "without: a.x = 1",
        "without: keep(a, b[index])",
        "without: b[1], b[2] = b[2], b[1]",
        "without: c.y = (a >= c) and {x = c == a, 1} or nil",
        "return function(c) c.y = (a >= c) and {x = c == a, 1} or nil end"
        "  ->  return function(c) c.y = (a > c) and {x = c == a, 1} or nil end",
        "return function(c) c.y = (a >= c) and {x = c == a, 1} or nil end"
        "  ->  return function(c) c.y = (a >= c) and {x = c ~= a, 1} or nil end",
    ]


def test_each_mutant_of_the_library_is_lua_that_differs_in_one_place() -> None:
    mutants = all_mutants()
    assert len({mutant.key for mutant in mutants}) == len(mutants) == len(sites_of(SOURCE)) > 400
    assert all(mutant.source != SOURCE for mutant in mutants)


def test_every_explanation_is_of_a_mutant_of_the_library_that_exists() -> None:
    known = explained(EXPLAINED)
    assert set(known) - {mutant.key for mutant in all_mutants()} == set()
    assert all(known.values())

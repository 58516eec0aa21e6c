"""What tokens cost: integers only, rounded up once per settle.

Prices are pico-dollars, amounts are nano-dollars: a price of $0.15 for a million tokens is 150,000 pico-dollars a
token, so that no price that people write needs a fraction.
"""

from __future__ import annotations

from penstock.quota.definitions import Price


def cost_nanos(price: Price, prompt: int, cached: int, completion: int) -> int:
    """The cost of one finished request, in nano-dollars, rounded up.

    Args:
        price: As it was when the request was reserved.
        prompt: Tokens, of which ``cached`` are charged at their own price.

    Example:
        >>> cost_nanos(Price(prompt_picos=150_000, completion_picos=600_000), 10, 0, 5)
        4500
        >>> cost_nanos(Price(prompt_picos=1), 1, 0, 0)
        1
    """
    picos = (
        (prompt - cached) * price.prompt_picos
        + cached * price.cached_picos
        + completion * price.completion_picos
        + price.request_picos
    )
    return -(-picos // 1000)


def cost_nanos_max(price: Price, prompt: int, completion: int) -> int:
    """The most that so many tokens can cost, whatever was cached; what a reservation holds.

    Example:
        >>> cost_nanos_max(Price(prompt_picos=2000, cached_picos=1000), 10, 0)
        20
    """
    cached = prompt if price.cached_picos > price.prompt_picos else 0
    return cost_nanos(price, prompt, cached, completion)


def cost_nanos_min(price: Price, prompt: int, completion: int) -> int:
    """The least that so many tokens can cost; what an expiry charges.

    Example:
        >>> cost_nanos_min(Price(prompt_picos=2000, cached_picos=1000), 10, 0)
        10
    """
    cached = prompt if price.cached_picos < price.prompt_picos else 0
    return cost_nanos(price, prompt, cached, completion)

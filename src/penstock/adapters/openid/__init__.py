"""Identity providers: fetches the keys that they sign with, and verifies their tokens by them."""

from penstock.adapters.openid.key_sets import KeySet
from penstock.adapters.openid.verifying import TokenVerifier, Trust

__all__ = ["KeySet", "TokenVerifier", "Trust"]

"""What ``penstock doctor`` looks at: each check is one function that writes nothing and says what to type.

``examining`` has the list, in order of importance, and keeps a check that cannot be made from hiding the others.
"""

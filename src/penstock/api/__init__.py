"""The API answers: OpenAI-compatible HTTP in front of the lanes, and the operations port.

``application.application`` and ``operations.operations_application`` build ASGI applications of what wiring gives
them; ``server.serve`` listens. Nothing is imported here, so that a command that only asks which routes there are
(``permissions``) does not load a web server.
"""

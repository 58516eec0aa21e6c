# Every process of Penstock that is written in Python: serve, keeper, execute, setup, await. Built from the project's root:
#
#   docker build -f manifests/images/penstock.Dockerfile -t penstock .
#   docker build -f manifests/images/penstock.Dockerfile --build-arg LOCK=serve -t penstock-local .    with the small model
#
# BASE is any Debian with Python 3.11 or later among its packages: a mirror's, or one of your own with its certificates.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils python3-venv
WORKDIR /build
COPY requirements requirements
ARG LOCK=cluster
# The tools that build are left behind; what is installed is locked with hashes, and nothing is compiled.
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements/bootstrap.txt \
    && python3 -m venv --without-pip /opt/penstock \
    && /opt/build/bin/pip --python /opt/penstock/bin/python install --no-cache-dir --no-compile --no-deps \
        --only-binary :all: --require-hashes -r requirements/${LOCK}.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src/penstock src/penstock
COPY config config
# Of the languages that can be coloured on a terminal, Python and plain text stay.
RUN /opt/build/bin/python -m hatchling build -t wheel -d /tmp/wheel \
    && /opt/build/bin/pip --python /opt/penstock/bin/python install --no-cache-dir --no-compile --no-deps /tmp/wheel/*.whl \
    && find /opt/penstock -name '*.so' -exec strip --strip-unneeded {} + \
    && rm -rf /opt/penstock/lib/python3*/site-packages/sqlalchemy/testing \
    && find /opt/penstock/lib/python3*/site-packages/pygments/lexers -name '*.py' \
        ! -name __init__.py ! -name _mapping.py ! -name python.py ! -name special.py -delete \
    && /opt/penstock/bin/python -m compileall -q /opt/penstock/lib

FROM python AS trimmed
COPY --from=build /opt/penstock /opt/penstock
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/penstock \
    && rm -rf /usr/share/doc /usr/share/locale /usr/share/man /usr/share/info /var/lib/dpkg/info /var/cache/* \
        /usr/lib/x86_64-linux-gnu/perl-base /usr/bin/perl*

# One layer without what was removed; the list of packages stays in it, for scanners.
FROM scratch
COPY --from=trimmed / /
USER 65532:65532
WORKDIR /etc/penstock
ENV PATH=/opt/penstock/bin:/usr/bin:/bin PENSTOCK_DATA=/var/lib/penstock PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["/opt/penstock/bin/penstock"]
CMD ["--help"]

# Every process of Penstock that is written in Python: serve, execute, keeper, setup. Built from the project's root.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/serve.txt requirements/
RUN python -m venv /opt/penstock \
    && /opt/penstock/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements/serve.txt
COPY . .
RUN /opt/penstock/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/penstock /opt/penstock
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/penstock
USER 65532:65532
WORKDIR /etc/penstock
ENV PENSTOCK_DATA=/var/lib/penstock PYTHONUNBUFFERED=1
ENTRYPOINT ["/opt/penstock/bin/penstock"]
CMD ["--help"]
